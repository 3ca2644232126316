"""Pre-trained weights: every tensor is loaded or reported, and no code in a file is executed."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from factories.cases import write_cohort
from factories.pretrained_files import (
    VOCABULARY,
    full_size_names,
    resnet_state,
    write_bert,
    write_hara,
    write_medicalnet,
)
from factories.tmi_command import CommandResult, tmi
from tmi.toolkit.config.presets import paper, tiny
from tmi.toolkit.config.schema import CtEncoderConfig, TextEncoderConfig
from tmi.toolkit.errors import DamagedError, TmiError, UsageError
from tmi.toolkit.models.encoders.bert import TextEncoder
from tmi.toolkit.models.encoders.resnet3d import CtEncoder
from tmi.training.pretrained import weight_file
from tmi.training.pretrained.ct_weights import read_ct_weights
from tmi.training.pretrained.initial_weights import prepare_initialization
from tmi.training.pretrained.text_weights import bert_settings, bert_tokenizer, read_text_weights
from tmi.training.pretrained.weight_file import read_weights

SMALL = CtEncoderConfig(layers=(1, 1, 1, 1), planes=(4, 4, 8, 8))
TEXT = TextEncoderConfig(hidden_size=16, layers=2, heads=2, intermediate_size=16, vocab_size=len(VOCABULARY))


class Planted:
    """Pickles to a call that creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def ct_config(**changes: object):
    return replace(tiny(), network=replace(tiny().network, ct_encoder=replace(SMALL, **changes)))


def test_hara_file_fills_encoder(tmp_path):
    """Every tensor is loaded, the stem summed over its channels and the classifier dropped."""
    written = write_hara(tmp_path / "r3d50_K_200ep.pth")
    state, report = read_ct_weights(tmp_path / "r3d50_K_200ep.pth", SMALL)
    encoder = CtEncoder(SMALL)
    encoder.load_state_dict(state, strict=True)
    for name, tensor in written.items():
        if name == "conv1.weight":
            assert torch.equal(encoder.backbone.conv1.weight, tensor.sum(dim=1, keepdim=True))
        elif not name.startswith("fc."):
            assert torch.equal(encoder.backbone.state_dict()[name], tensor), name
    assert (report.layout, report.wrapper, report.prefix) == ("hara", "state_dict", "")
    assert report.adapted == {"backbone.conv1.weight": "summed over its 3 input channels"}
    assert report.dropped == ("fc.weight", "fc.bias")
    assert report.missing == ()
    assert len(report.taken) == len(written) - 2


def test_summed_stem_matches_repeated_grey_image(tmp_path):
    """The summed stem on an image gives the output of the 3-channel stem on the repeated image."""
    written = write_hara(tmp_path / "hara.pth")
    state, _ = read_ct_weights(tmp_path / "hara.pth", SMALL)
    image = torch.rand(1, 1, 8, 16, 16)
    expected = torch.nn.functional.conv3d(image.expand(-1, 3, -1, -1, -1), written["conv1.weight"], padding=3)
    summed = torch.nn.functional.conv3d(image, state["backbone.conv1.weight"], padding=3)
    torch.testing.assert_close(summed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segmentation", [True, False])
def test_medicalnet_file_fills_encoder_and_sets_strides(tmp_path, segmentation):
    """MedicalNet's weights are loaded, and the config takes MedicalNet's stride and dilations with a note."""
    path = tmp_path / "resnet_50_23dataset.pth"
    written = write_medicalnet(path, segmentation=segmentation)
    start = prepare_initialization(ct_config(), ct=path, text=None)
    config = start.config.network.ct_encoder
    assert (config.stem_stride_DHW, config.dilation) == ((2, 2, 2), (1, 1, 2, 4))
    assert "takes its stem stride (2,2,2) and dilation 2 and 4" in start.notes[0]
    (report,) = start.weights.reports
    assert (report.layout, report.wrapper, report.prefix) == ("medicalnet", "state_dict", "module.")
    assert report.dropped == (("conv_seg.0.weight", "conv_seg.0.bias") if segmentation else ())
    assert (report.missing, report.adapted) == ((), {})
    encoder = CtEncoder(config)
    encoder.load_state_dict(dict(start.weights.states["ct"]), strict=False)
    assert all(torch.equal(encoder.backbone.state_dict()[name], tensor) for name, tensor in written.items())


@pytest.mark.parametrize("without", [".downsample.", "layer3.0.downsample.1."])
@pytest.mark.parametrize("layout", ["medicalnet", "hara"])
def test_weights_without_shortcut_projections_are_rejected(layout, without, tmp_path):
    """Shortcut A (MedicalNet's resnet_18 and resnet_34) has no projections; an encoder with B does not go on."""
    path = tmp_path / "resnet_18.pth"
    (write_medicalnet if layout == "medicalnet" else write_hara)(path)
    document = torch.load(path, weights_only=True)
    state = {name: tensor for name, tensor in document["state_dict"].items() if without not in name}
    assert len(document["state_dict"]) - len(state) > 0
    torch.save({"state_dict": state}, path)
    with pytest.raises(UsageError, match="no projection for shortcuts") as error:
        prepare_initialization(ct_config(), ct=path, text=None)
    assert "shortcut type B" in error.value.fix
    assert "downsample" in str(error.value)


def test_strides_set_by_user_are_kept(tmp_path):
    """Strides set explicitly are kept, and a note reports the mismatch."""
    write_medicalnet(tmp_path / "resnet_50.pth")
    start = prepare_initialization(
        ct_config(), ct=tmp_path / "resnet_50.pth", text=None, chosen=("network.ct_encoder.dilation",)
    )
    assert start.config.network.ct_encoder == SMALL
    assert "keeps the strides that --set gives it" in start.notes[0]


def test_dilated_stage_keeps_grid_and_weight_shapes():
    """A dilated stage has stride 1, and dilation changes no weight's shape."""
    strided = CtEncoder(SMALL)
    dilated = CtEncoder(replace(SMALL, stem_stride_DHW=(2, 2, 2), dilation=(1, 1, 2, 4)))
    shapes = {n: t.shape for n, t in strided.state_dict().items()}
    assert shapes == {n: t.shape for n, t in dilated.state_dict().items()}
    sizes = {}
    for stage in (1, 2, 3, 4):
        getattr(dilated.backbone, f"layer{stage}").register_forward_hook(
            lambda _, __, out, stage=stage: sizes.update({stage: tuple(out.shape[2:])})
        )
    dilated.eval()(torch.rand(1, 1, 32, 64, 64))
    assert sizes == {1: (8, 16, 16), 2: (4, 8, 8), 3: (4, 8, 8), 4: (4, 8, 8)}
    convolution = dilated.backbone.layer4[0].conv2
    assert (convolution.dilation, convolution.padding, convolution.stride) == ((4, 4, 4), (4, 4, 4), (1, 1, 1))


def test_full_resnet50_tensor_names():
    """The full-size encoder has the tensor names of the published ResNet-50."""
    with torch.device("meta"):
        state = CtEncoder(paper().network.ct_encoder).state_dict()
    assert set(state) == {f"backbone.{name}" for name in full_size_names()}


@pytest.mark.parametrize(
    ("head", "old_names", "file"),
    [
        (True, False, "model.safetensors"),
        (False, False, "model.safetensors"),
        (True, True, "pytorch_model.bin"),
        (False, True, "pytorch_model.bin"),
    ],
)
def test_bert_folder_fills_text_encoder(tmp_path, head, old_names, file):
    """Every tensor is loaded with or without a head, with new or old LayerNorm names, in either file format."""
    written = write_bert(tmp_path / "bert", head=head, old_names=old_names, file=file)
    config = bert_settings(tmp_path / "bert", tiny().network.text_encoder)
    assert config == TEXT
    state, report = read_text_weights(tmp_path / "bert", config)
    encoder = TextEncoder(config)
    encoder.load_state_dict(state, strict=True)
    for name, tensor in encoder.bert.state_dict().items():
        assert torch.equal(tensor, written[name]), name
    dropped = {n.removeprefix("bert.") for n in report.dropped}
    expected = {"pooler.dense.weight", "pooler.dense.bias"} | ({"embeddings.position_ids"} if old_names else set())
    assert dropped == expected | ({"cls.predictions.bias", "cls.seq_relationship.weight"} if head else set())
    assert report.missing == ()
    assert len(report.adapted) == (10 if old_names else 0)
    assert report.prefix == ("bert." if head else "")


def test_pooler_is_loaded_with_pooler_pooling(tmp_path):
    """BERT's pooler is loaded if the config pools by it."""
    written = write_bert(tmp_path / "bert")
    state, report = read_text_weights(tmp_path / "bert", replace(TEXT, pooling="pooler"))
    assert torch.equal(state["bert.pooler.dense.weight"], written["pooler.dense.weight"])
    assert not any("pooler" in name for name in report.dropped)


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_tokenizer_is_cased_and_truncates(tmp_path, form):
    """A folder with lower-casing settings is read as cased, and texts are truncated at the configured length."""
    write_bert(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    if form == "tokenizer.json":
        vocab = {token: i for i, token in enumerate(VOCABULARY)}
        (tmp_path / "bert" / "vocab.txt").unlink()
        (tmp_path / "bert" / form).write_text(
            json.dumps({"normalizer": {"lowercase": True}, "model": {"vocab": vocab}})
        )
    tokenizer = bert_tokenizer(tmp_path / "bert")
    encoded = tokenizer.encode(["Albumin: 38 g/L. " * 200, "Sex"], max_length=paper().clinical.max_length)
    assert encoded.input_ids_BT.shape == (2, 512)
    assert encoded.truncated_B == (True, False)
    assert VOCABULARY[encoded.input_ids_BT[0, 1]] == "Albumin"


# Rejected files


def test_pickle_with_code_is_rejected_and_not_executed(tmp_path):
    """A pickle with a call is not trusted, and the call is not executed."""
    trace = tmp_path / "ran"
    torch.save({"state_dict": resnet_state(1, planes=SMALL.planes), "extra": Planted(trace)}, tmp_path / "bad.pth")
    with pytest.raises(DamagedError, match="not trusted") as error:
        read_ct_weights(tmp_path / "bad.pth", SMALL)
    assert "bad.pth" in error.value.what
    assert not trace.exists()
    write_bert(tmp_path / "bert", file="pytorch_model.bin")
    torch.save(Planted(trace), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(DamagedError, match="not trusted"):
        read_text_weights(tmp_path / "bert", TEXT)
    assert not trace.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert trace.exists(), "the planted pickle executes when unpickled"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


CT_FAULTS = {
    "missing file": (lambda p: None, UsageError, "do not exist"),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p), UsageError, "contain no named tensors"),
    "a list": (lambda p: torch.save([torch.zeros(3)], p), UsageError, "are not a mapping of names to tensors"),
    "another network": (
        lambda p: torch.save({f"features.{i}.weight": torch.zeros(3, 3) for i in range(9)}, p),
        UsageError,
        "too few to be of use",
    ),
    "another width": (
        lambda p: torch.save({"state_dict": resnet_state(3, planes=(4, 8, 8, 8))}, p),
        UsageError,
        r"has shape 8x16x1x1x1, the encoder expects 4x16x1x1x1",
    ),
    "stem alone": (
        lambda p: torch.save({"conv1.weight": torch.zeros(4, 1, 7, 7, 7)}, p),
        UsageError,
        "too few to be of use",
    ),
    "truncated": (lambda p: (write_hara(p), truncate(p)), TmiError, "cannot be read|is not a checkpoint"),
    "text": (lambda p: p.write_text("<html>not found</html>"), DamagedError, "not trusted"),
}


@pytest.mark.parametrize("fault", CT_FAULTS)
def test_unusable_weights_are_rejected(tmp_path, fault):
    """A file without enough matching tensors, or that cannot be read, is an error with a fix."""
    write, kind, text = CT_FAULTS[fault]
    write(tmp_path / "weights.pth")
    with pytest.raises(kind, match=text) as error:
        read_ct_weights(tmp_path / "weights.pth", SMALL)
    assert error.value.fix


def test_damaged_safetensors_file_is_rejected(tmp_path):
    """A truncated safetensors file is a DamagedError."""
    save_file(resnet_state(1, planes=SMALL.planes), tmp_path / "w.safetensors")
    assert read_ct_weights(tmp_path / "w.safetensors", SMALL)[1].layout == "resnet"
    truncate(tmp_path / "w.safetensors")
    with pytest.raises(DamagedError, match="cannot be read"):
        read_ct_weights(tmp_path / "w.safetensors", SMALL)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_special_or_huge_weights_are_not_opened(tmp_path, name):
    """A weight file that is no regular file, or larger than weights can be, is rejected before a library opens it."""
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(TmiError):
        read_weights(path)
    path.unlink()
    path.touch()
    os.truncate(path, 6 * 2**30)
    with pytest.raises(DamagedError, match="larger than 4096 MiB"):
        read_weights(path)


def test_packed_weights_are_not_unpacked(tmp_path, monkeypatch):
    """An archive that unpacks to more than weights can have is rejected by its directory."""
    with zipfile.ZipFile(tmp_path / "weights.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data/0", bytes(2**24))
    monkeypatch.setattr(weight_file, "WEIGHTS_BYTES", 2**20)
    with pytest.raises(DamagedError, match="unpacks to more than"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"model_type": "roberta"}, "model_type='roberta'"),
        ({"max_position_embeddings": 128}, "max_position_embeddings=128"),
        ({"hidden_size": None}, "is not that of a BERT"),
    ],
)
def test_unsupported_bert_is_rejected(tmp_path, changes, text):
    """A config.json with an unsupported value is rejected with the key."""
    write_bert(tmp_path / "bert", **changes)
    with pytest.raises(UsageError, match=text):
        bert_settings(tmp_path / "bert", TEXT)


def test_uncased_vocabulary_is_rejected(tmp_path):
    """A vocabulary without capital letters is rejected."""
    write_bert(tmp_path / "bert", vocabulary=[t if t.startswith("[") else t.lower() for t in VOCABULARY])
    with pytest.raises(UsageError, match=r"uncased: every capital letter would become \[UNK\]"):
        bert_tokenizer(tmp_path / "bert")


def test_missing_weights_and_hub_id_are_rejected(tmp_path):
    """A folder without weights and a model id of a hub are usage errors; nothing is downloaded."""
    write_bert(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_text_weights(tmp_path / "bert", TEXT)
    with pytest.raises(UsageError, match="are not a folder") as error:
        bert_settings(Path("dmis-lab/biobert-v1.1"), TEXT)
    assert "nothing is downloaded" in error.value.fix


# The command

OPTIONS = ["--preset", "tiny", "--folds", "2", "--epochs", "1", "--accelerator", "cpu"]
SMALL_SETTINGS = [
    "ct.shape_DHW=[8,16,16]",
    "clinical.max_length=64",
    'network.ct_encoder.block="bottleneck"',
    "network.ct_encoder.planes=[4,4,8,8]",
    "network.radiomics_encoder.hidden=8",
    "network.head.blocks=[1,1]",
    'train.freeze=["ct","text"]',
]


def train(cohort: Path, run: Path, *more: object) -> CommandResult:
    return tmi("train", cohort, "--out", run, *OPTIONS, *(x for s in SMALL_SETTINGS for x in ("--set", s)), *more)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    write_cohort(folder / "cohort", cases=8, with_mask=False)
    write_hara(folder / "hara.pth")
    write_bert(folder / "bert")
    return folder


def test_run_starts_from_weights_and_records_them(files, tmp_path):
    """`tmi train` loads the weights into every fold, logs a report and writes pretrained.json."""
    outcome = train(
        files / "cohort", tmp_path / "run", "--ct-weights", files / "hara.pth", "--text-weights", files / "bert"
    )
    assert outcome.code == 0, outcome.err
    assert "ct encoder: hara.pth (hara): " in outcome.err
    assert "0 missing" in outcome.err
    assert "the text encoder takes the sizes of bert: 2 layers of width 16" in outcome.err
    assert "random weights: the radiomics encoder(s), interaction and head" in outcome.err
    recorded = json.loads((tmp_path / "run" / "pretrained.json").read_text())
    assert set(recorded) == {"ct", "text"}
    assert recorded["ct"]["dropped"] == ["fc.weight", "fc.bias"]
    assert str(files) not in json.dumps(recorded)
    stem = torch.load(files / "hara.pth", weights_only=True)["state_dict"]["conv1.weight"].sum(1, keepdim=True)
    for fold in range(2):
        model = load_file(tmp_path / "run" / f"fold{fold}" / "model.safetensors")
        assert torch.equal(model["ct_encoder.backbone.conv1.weight"], stem)
        tokenizer = json.loads((tmp_path / "run" / f"fold{fold}" / "tokenizer.json").read_text())
        assert list(tokenizer["model"]["vocab"]) == VOCABULARY


def test_resume_requires_same_weights(files, tmp_path):
    """A run is resumed only with the weights that it started from."""
    run = tmp_path / "run"
    assert train(files / "cohort", run, "--ct-weights", files / "hara.pth").code == 0
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"status": "running"}))
    outcome = train(files / "cohort", run, "--resume")
    assert outcome.code == 2
    assert "was started from different pre-trained weights" in outcome.err
    assert train(files / "cohort", run, "--ct-weights", files / "hara.pth", "--resume").code == 0
