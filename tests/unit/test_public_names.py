"""The public names of every room: what its `__init__.pyi` exports, and what other rooms may import from it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from factories.paths import ROOT

PACKAGES = ("toolkit", "runtime", "training", "export")
PUBLIC_NAMES = {
    "tmi.export.bundle": """
        ExportSettings INT8_PRECISION with_int8 add_to_bundle build_bundle check_request export_run require_addable
        tries_int8
    """,
    "tmi.export.checks": """
        AuditedGraph CalibratedCase Progress RealCase ValidationSet audit_file audit_fold_files audit_stored_weights
        compute_eager_reference float32_noise float64_reference golden_case_reference
        network_inputs read_real_cases read_summary require_finite split_failed_optional validate_engine
        validate_engines validate_real_cases write_engine_outputs write_file write_real_cases
    """,
    "tmi.export.cli": "",
    "tmi.export.graphs": """
        EXPORTERS FoldModels GraphPartition INT8 MultiFoldFusion StateDict TYPED example_inputs
        TORCH_TRT exporter_spec partition_run read_weights require_exportable require_exporter
        weights_digest write_onnx
    """,
    "tmi.export.quantization": """
        SIGNED_SUFFIX add_int8_graphs audit_signed_graph read_calibration_cases write_signed_graph
    """,
    "tmi.export.tensorrt": """
        BuildOptions FP16_MAX HardwareLevel PLANS PlanRequest add_plans add_typed_graphs audit_typed audit_typed_file
        build_blocker build_plan emulate_fp16 emulation_session pending_engines read_typed require_complete
        require_precision require_target run_emulation save to_fp16 without_plans WeightsMode
    """,
    "tmi.runtime.benchmark": """
        BenchmarkPlan BenchmarkReport BenchmarkWorker EngineBenchmark InterleavedTimer Ratio
        choose_engines measure ratio write_bench_case
    """,
    "tmi.runtime.bundle": """
        Addition Bundle CalibrationCase CheckResult ClinicalSpec Int8Graph Int8Record case_digest untrained_cases
        EVIDENCE_FOLDER EmulationRecord EnginePlans FUSION
        FileSpec FloatNode FoldSpec GOLDEN_CASE_FILE GOLDEN_FILE GoldenRecord GpuRecord
        GraphPrecision GraphSource GraphSpec Hardware Keys MANIFEST_FILE MODEL_CARD_FILE Manifest
        ParityError PlanFeatures PlanOptions PlanPrecision PlanRecord PrecisionRecord
        REAL_CASES_FILE Role RunRecord SBOM_FILE SIGNATURE_FILE SIGNED TensorPosition TensorRtRecord
        TensorSpec TrustRecord UNCHECKED UNSIGNED bundled_scaler bundled_schema bundled_tokenizer bundled_trust
        fingerprint
        graph_spec inspect_bundle known_entries manifest_from_json manifest_to_json open_bundle
        open_trusted_bundle record_accepted part_digests require_exported_graph require_passed require_signature
        required_keys sign_bundle with_current_names write_manifest
        UNFINGERPRINTED_FILES
    """,
    "tmi.runtime.cli": """
        WORKER
    """,
    "tmi.runtime.cli.tables": """
        checks_table emulation_lines engines_table failures_table held_out_table plans_table print_table
        print_timing stages_table summary_table times_table to_csv
    """,
    "tmi.runtime.dicom_results": """
        Origin SourceSeries read_source require_root write_dicom_results
    """,
    "tmi.runtime.engines": """
        AUTO Arrays ENGINES ERRORS_ONLY EagerEngine Engine EngineRecord EngineTimes FLOAT16 FLOAT32 Gpu
        GraphEngine INT8 TF32 as_runtime_errors choose_engine cpu_features cpu_name driver_incompatibility
        engine_precision engine_record engine_spec find_gpu graph_precision_records graph_precisions
        hardware installed is_out_of_scope missing_requirement open_engine package_version
        largest_error plan_precision rejected_at_export require_gpu unavailable_here unavailable_reason
        timed_engines validated_at_export
        allowed_precisions
    """,
    "tmi.runtime.explanation": """
        BAR_MM CaseExplanation Explainer Explanation ModelSource OUTLINE Picture TOP_FEATURES
        bundle_models case_document ct_only_document ct_only_map explain explain_case explanation_threads
        feature_class grey image_type legend_colours map_colours open_bundle_models open_run_models require_ct_only
        require_explanation_memory save_montage strongest_fields sum_by_group top_features torch_threads
        write_explanation
    """,
    "tmi.runtime.inference": """
        EmbeddingCache EncodedBranch Features TokenIds Tokens concatenate_tokens encode_ct encode_text encoder_graphs
        fold_std fuse fusion_inputs group_by_length probabilities run_folds softmax
        trim_padding
    """,
    "tmi.runtime.report": """
        CASES case_page finished_result index_page inputs_digest page_record
    """,
    "tmi.runtime.service": """
        CaseQueue GrpcEndpoint LOOPBACK Listener PredictionService RequestError STATUS_OF ServiceClient ServiceMetrics
        ServiceSettings bind build_app client_tls read_token tls_context OpenAgain ServedModel open_replacement
        BYTES InferRequest MODEL MODEL_VERSION Tensor bad_request case_of_tensors input_metadata output_metadata
        output_tensors result_document
    """,
    "tmi.runtime.serving": """
        ALERTS BUNDLE_WARNINGS CaseResult FEATURE_ALERTS FEATURE_WARNINGS HeldOutRow InferencePipeline
        Prediction Predictor RESEARCH_USE RejectedCase ResultLog SCHEMA SYNTHETIC Trace alerts case_notices
        Decision FoldMeasurement NOT_ASSESSED NOT_TRUSTED TrustAssessor decide truncated_notice
        chosen_by_auto compare_held_out document open_selected_engine resolve_cases result_from_json result_log_path
        result_to_json
        set_lines stages_match_total sum_stages trust_lines trust_sentence unaccounted_seconds MACHINE collect
    """,
    "tmi.runtime.triton": "GRAPH_BACKENDS RepositorySettings TritonPythonModel write_repository",
    "tmi.runtime.verification": """
        BOUNDS ENGINE_ERRORS FLOAT64_PREFIX GoldenInputs GoldenText LogCallback Measure Outputs PIPELINE
        REFERENCE_MARGIN SELF_TEST_SKIPPED SHORT_TEXT Verification cached_result check_engine check_outputs
        check_preprocessing compare_metadata engine_times failure_summary golden_config golden_count
        golden_from_manifest largest_batch load_failure make_golden measure_engines output_metadata read_golden_case
        read_references relative_error require_survived_trial run_self_test text_digest trimmed
        verify_bundle write_golden_case
    """,
    "tmi.toolkit.cases": """
        CASE_RECORD_FILE CLINICAL_FILE COHORT_COLUMNS COHORT_FILE CT_FILE Case CaseArrays CaseBytes CaseRecord
        Cohort LoadedCase case_bytes cohort_fingerprint has_file load_case
        MASK_FILE MAX_NAME_BYTES MaskLabel NAME_FAULT RADIOMICS_FILE RADIOMICS_RECORD_FILE Repair
        TABLE_REPORT_FILE access_error add_repair find_cases folder_key format_label given_name
        is_cohort is_folder is_portable_name is_system_entry is_too_long missing_case_error
        open_case open_cohort parse_mask_label read_case_record reading unopened_error
        write_case_record Shard shard_number
    """,
    "tmi.toolkit.cli": """
        COMMANDS Column Listing Progress Task completes echo echo_json interruptible limit_to_cores
        make_console print_error print_listing require_case_paths require_folder_name require_paths require_run
        require_used_key resolve_bundle show_progress show_steps split_names
    """,
    "tmi.toolkit.clinical": """
        ClinicalRecord Encoded Field KEYS MIN_PATIENTS RENDERING_VERSIONS Rendering SCHEMA_FILE
        Schema Tokenizer Value accepted_unit check_blood_date check_completeness check_units convert
        enumerate_fields field_spans find_schema iso_date load_schema lost_fields missing_fields
        plausible read_all_clinical read_all_values read_clinical render report_text
        require_rendering sentences store_schema stored_schema truncation_fix truncation_warning
    """,
    "tmi.toolkit.compute": """
        ArrayAllocator AvailableMemory BufferPool Ignored Span StageTimer available_cores
        available_memory disable_telemetry end_with_input end_with_parent fits format_memory initialize_worker
        library_call limit_spinning provide_user quiet require_memory sum_spans worker_pool
    """,
    "tmi.toolkit.config": """
        AugmentationConfig CLASSES Config CtConfig CtEncoderConfig FusionConfig HeadConfig
        LossConfig MODALITIES Modality N_RADIOMICS NetworkConfig POSITIVE PROJECT_FILE Project
        RadiomicsConfig RadiomicsEncoderConfig Resnet2dConfig SimpleFfConfig TextEncoderConfig
        TrainConfig VitConfig default_bundle load_project new_run_folder newest_finished_run
        override paper preset tiny DEFAULT_RECIPE TEACHES_TEXT recipe_settings
        BUNDLE_VARIABLE
    """,
    "tmi.toolkit.imaging": """
        DEFLATE_RATIO Grid MAX_VOXELS PLANES Plane StreamingResampler Volume grid_difference
        is_sheared open_nifti orientation_of place_mask prepare_ct read_ahead read_ct read_ct_file
        read_label_file read_label_names read_labels read_mask require_same_grid resample_mask
        resample_to_ct_grid to_stored_axes write_on_ct_grid
    """,
    "tmi.toolkit.ingest": """
        ChosenLabel ImportedCase LoadedCt MAX_VOXELS canonical_volume choose_label
        import_case is_image_file is_valid_affine
    """,
    "tmi.toolkit.ingest.dicom": """
        READ_ERRORS is_dicom_file list_files open_dicom read_dicom_ct read_rtstruct read_seg choose_series scan_folder
    """,
    "tmi.toolkit.ingest.tabular": "TableReport import_table",
    "tmi.toolkit.issues": """
        CASE_CODES CODES COMMAND_CODES Code Issue RETIRED_CODES Severity TABLE_CODES
        USE_CODES shortened
    """,
    "tmi.toolkit.models": """
        AnyModule Logits MetaNetwork MultimodalNetwork active_encoder active_modalities apply_temperature
        assemble_network configured_model create_network create_network_part create_with_weights encoder_names
        encoder_roles feature_width live_bytes load_weights_strict meta_network
    """,
    "tmi.toolkit.models.baselines": """
        HfbsurvFusion MmdFusion MmdOutput SimpleFfFusion SliceFeatures
    """,
    "tmi.toolkit.models.encoders": """
        CtEncoder RadiomicsEncoder SliceEncoder TextEncoder VitEncoder create_resnet2d
    """,
    "tmi.toolkit.models.tmi_clnet": """
        Fusion FusionOutput SubsetFusion TmiClnet TripleModalCrossAttention feature_widths
    """,
    "tmi.toolkit.preprocessing": """
        ExtractionOptions ExtractionResult PreparedCache PreparedCase STAGES clinical_inputs make_tables
        prepare_case
    """,
    "tmi.toolkit.qc": """
        ALERTS AppliedRepair CHECKS RadiomicsComparison TextEncoderInput check_case
        check_cases check_ct check_mask check_mask_name document parse_codes raise_on_error repair
    """,
    "tmi.toolkit.radiomics": """
        AXES ExternalTable ExtractedFeatures FEATURE_NAMES RadiomicsRecord RadiomicsScaler SETTINGS SETTINGS_DIGEST
        Scaled extract extract_cached extract_reference file_digest missing_features
        package_versions read_case_table read_external_table read_mapping read_record read_table
        reference_path_reason require_features staleness_reason table_axes table_text write_record
        write_table
    """,
    "tmi.toolkit.storage": """
        ACCESS_ERRORS CERTIFICATE_BYTES COHORT_BYTES ContentCache DIGEST_BYTES DOCUMENT_BYTES DiskCache DocumentError
        FEATURES_BYTES FEATURE_TABLE_BYTES FileTooLargeError IMAGE_BYTES JOURNAL_BYTES LOCK_FILE
        NotFiniteError NotRegularFileError RECORD_BYTES SETTINGS_BYTES SPACE_ERRORS STATE_VARIABLE
        TABLE_BYTES TIMING_CACHE_BYTES WEIGHTS_BYTES YAML_BYTES cache_root canonical_json closed_on_error state_root
        csv_dicts csv_records csv_rows csv_rows_of_lines csv_text digest file_kind find_delimiter
        follow_umask foreign_format from_json is_access_error is_packed is_unicode
        make_private_folder open_locked open_private open_regular output_lock parse_json parse_toml parse_yaml
        plain_text printable require_size printable_json read_bytes read_document read_json read_text regular_file
        require_absent require_bounded require_place sha256_bytes sha256_file sha256_json staged_folder to_json
        type_hints unescape_cell write_json write_private write_text
    """,
    "tmi.toolkit.synthetic": """
        Grid SYNTHETIC_NOTICE TRUTH_FILE disease_signs empirical_auc is_synthetic make_cohort modality_subsets
        render sample_body
    """,
    "tmi.toolkit.trust": """
        COVERAGE DRIFT_LEVEL Drift FoldTrust GEOMETRY_SIZE JOINT MIN_COHORT NumberDrift PartStatistics PredictionSet
        Summary TRUST_LEVEL Trust assess can_be_given case_parts class_scores compare_cohort join largest_coverage
        monitored_numbers prediction_set require_coverage require_level set_sentence set_text smallest_p_value
        summarise volume_statistics
    """,
    "tmi.training.cli": "",
    "tmi.training.comparison": """
        CLINICAL CLINICAL_OVERRIDES CLINICAL_RENDERINGS ComparisonRuns ExternalEvaluation Plan PlannedRun
        evaluate_external make_plan
        require_external select_tables train_all write_report
        RUNS
    """,
    "tmi.training.data": """
        Batch CohortArrays EpochBatches FoldDataset IN_MEMORY_BYTES NO_ANONYMITY can_find_copies
        find_copies
        find_duplicates make_folds patient_key prepare_cohort text_truncation
        train_vocabulary write_augmentation_log
    """,
    "tmi.training.evaluation": """
        EncoderFeatures METRICS Predictions SYNTHETIC TITLES aggregate_folds binary_metrics calibrate
        conformal_scores criterion encoder_features fit_trust fitted_calibration fold_summary selected_epoch
        estimator_features fit_threshold format_metric is_calibrated load_fold_network optimism_note
        pool_folds positive_class_probability positive_probability predict_cases predict_estimator
        predict_fold predict_logits read_predictions write_fold_report write_summary write_trust
    """,
    "tmi.training.evaluation.statistics": """
        CONFIDENCE_LEVEL Curve DeLong McNemar N_REPLICATES bootstrap_weights delong_test
        holm_correction interval mcnemar_test precision_recall reliability roc weighted_metrics
    """,
    "tmi.training.leakage_audit": """
        AuditResult audit_calibration audit_cohort audit_folder check_conformal limits not_checked replay_fold
        replay_weights require_same_cohort scratch_store select_folds
    """,
    "tmi.toolkit.radiomics.formulas": """
        cooccurrence_features dependence_features measure_mesh run_length_features shape_features
        tone_difference_features zone_features
    """,
    "tmi.training.loop": """
        FoldContext FoldModule HardwareConfig RunResult RunSpec TrainingCallbacks cross_validate estimate_memory
        fit_memory machine_differences machine_facts recorded_machines require_same_initial_weights
        require_same_options resolve_accelerator set_frozen_eval set_vector_norms_eval train_fold
        require_hardware_options require_text_memory
    """,
    "tmi.training.loop.optimization": """
        EncoderHeads averaged_copy is_scheduled learning_rate_factor
    """,
    "tmi.training.losses": """
        Loss task_loss total_loss
    """,
    "tmi.training.pretrained": """
        DOCUMENT_SCHEMA FIXED InitialWeights Initialization PRETRAINING_FILE SIZES VOCABULARY
        WEIGHTS prepare_initialization require_bounded_archive require_matching_pretraining
        vocabulary_record
    """,
    "tmi.training.systems": """
        Arrays build_model build_network encoders fit load loss_function probability
    """,
    "tmi.training.text_pretraining": """
        PretrainConfig pretrain value_at_position write_encoder
    """,
}
"""Room -> its public names. A name that is added, renamed or removed changes this list on purpose."""


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the four packages."""
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py")]
    dotted = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts[1:]) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in dotted.items()}


MODULES = modules()
ROOMS = {name for name, file in MODULES.items() if file.name == "__init__.py" and name.count(".") > 1}


def imports_from_other_rooms() -> list[tuple[str, str, str]]:
    """Importing module, room and name of each name that a module imports from a module of another room."""
    found = []
    for importer, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module not in MODULES or node.level:
                continue
            room = node.module.rpartition(".")[0]
            if room in ROOMS and room != importer.rpartition(".")[0]:
                found += [(importer, room, a.name) for a in node.names if f"{node.module}.{a.name}" not in MODULES]
    return found


def test_list_has_every_room():
    """A new room adds its line to the list."""
    assert set(PUBLIC_NAMES) == ROOMS


@pytest.mark.parametrize("room", PUBLIC_NAMES)
def test_room_exports_its_public_names(room):
    """`__all__` is the list, and each name can be imported from the room."""
    package = importlib.import_module(room)
    expected = PUBLIC_NAMES[room].split()
    assert sorted(getattr(package, "__all__", [])) == sorted(expected)
    assert [name for name in expected if not hasattr(package, name)] == []


@pytest.mark.parametrize("room", PUBLIC_NAMES)
def test_public_functions_and_classes_have_docstrings(room):
    """What a newcomer finds by `help` says what it does."""
    package = importlib.import_module(room)
    objects = {name: getattr(package, name) for name in PUBLIC_NAMES[room].split()}
    documented = {n: o for n, o in objects.items() if inspect.isclass(o) or inspect.isfunction(o)}
    assert [name for name, item in documented.items() if not inspect.getdoc(item)] == []


def test_rooms_import_only_public_names_of_each_other():
    """What is not in a room's list is private to it."""
    private = [
        f"{importer} imports {name} of {room}"
        for importer, room, name in imports_from_other_rooms()
        if name not in PUBLIC_NAMES[room].split() and importlib.util.find_spec(f"{room}.{name}") is None
    ]
    assert private == []


def test_importing_all_rooms_imports_nothing_heavy():
    """The exports are lazy: a room's import loads none of its modules."""
    program = (
        f"import importlib, sys; [importlib.import_module(room) for room in {sorted(PUBLIC_NAMES)}];"
        "print(*sorted({'torch', 'numpy', 'SimpleITK', 'pydicom', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
