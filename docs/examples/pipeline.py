"""From a synthetic cohort to an explained prediction, on the public Python API.

    python docs/examples/pipeline.py [FOLDER]

For research use only. The cases are phantoms, and two epochs teach a network next to nothing: no number applies to
patients. It takes about a minute on two cores. `pipeline.ipynb` shows the same steps with progress and a report.
"""

# %% Settings
import sys
from dataclasses import replace
from pathlib import Path

from tmi.export import export
from tmi.runtime import Predictor, RejectedCase, explain
from tmi.toolkit import check_case, import_case, load_case, make_cohort
from tmi.toolkit.config import preset
from tmi.training import train


def main(work: Path) -> None:
    """Run all steps; every file is written into `work`."""
    # %% A cohort of phantoms: tmi synth
    cohort = make_cohort(work / "cohort", cases=12, seed=1)
    print(f"{len(cohort.cases)} cases in {cohort.folder}")

    # %% A case of other files: tmi import, tmi check
    source = cohort.cases[0].folder
    imported = import_case(
        work / "imported" / "P001",
        ct=source / "ct.nii.gz",
        mask=source / "liver.nii.gz",
        clinical=source / "clinical.json",
        radiomics=source / "radiomics.csv",
    )
    print(imported)
    for issue in check_case(imported.case):
        print(f"{issue.severity} {issue.code}: {issue.message}")

    # %% Two fold models: tmi train
    config = preset("tiny")
    config = replace(config, train=replace(config.train, folds=2, epochs=2))
    trained = train(cohort, work / "run", config=config)
    print(trained)

    # %% A bundle, written only if every parity check passes: tmi export
    bundle = export(trained.run.path, work / "bundle", engines=("onnx",))
    print(bundle)

    # %% Predictions: tmi predict. A loaded case is read once, for the prediction and for its explanation
    case = load_case(imported.case)
    with Predictor.open(bundle, engine="onnx") as predictor:
        print(predictor)
        for result in predictor.predict([case, work / "missing"]):
            if isinstance(result, RejectedCase):
                print(f"{result.case_id} rejected ({result.code}): {result.fix}")
            else:
                print(f"{result.case_id} {result.decision}, p(bad) {result.probability['bad']:.4f}")

    # %% The reasons of a prediction: tmi explain
    explained = explain(case, bundle)
    print(explained)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
