"""Small files of random weights in the layout of the public pre-trained weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from monai.networks.nets.resnet import resnet50
from safetensors.torch import save_file
from torch import Tensor, nn

LETTERS = [chr(c) for c in (*range(65, 91), *range(97, 123), *range(48, 58))] + list(".:,/-%()")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "Albumin", "Sex"]
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def resnet_state(channels: int, *, planes: tuple[int, int, int, int], seed: int = 0) -> dict[str, Tensor]:
    """State of a bottleneck 3D ResNet with one block per stage; names as in the two public repositories."""
    from monai.networks.nets.resnet import ResNet, ResNetBottleneck

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet(
            ResNetBottleneck, [1, 1, 1, 1], list(planes), n_input_channels=channels, conv1_t_size=7,
            conv1_t_stride=(1, 2, 2), feed_forward=False, bias_downsample=False,
        )  # fmt: skip
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-1, 1)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def write_hara(path: Path, *, planes: tuple[int, int, int, int] = (4, 4, 8, 8)) -> dict[str, Tensor]:
    """Write a file like r3d50_K_200ep.pth (3-channel stem, `fc`, optimiser state) and return its tensors."""
    state = resnet_state(3, planes=planes) | {"fc.weight": torch.rand(700, planes[-1] * 4), "fc.bias": torch.rand(700)}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"epoch": 200, "arch": "resnet-50", "state_dict": state, "optimizer": momentum}, path)
    return state


def write_medicalnet(
    path: Path, *, planes: tuple[int, int, int, int] = (4, 4, 8, 8), segmentation: bool = True
) -> dict[str, Tensor]:
    """Write a file like resnet_50*.pth (prefix `module.`, 1-channel stem, no batch counters, optionally `conv_seg`)."""
    state = {n: t for n, t in resnet_state(1, planes=planes).items() if not n.endswith("num_batches_tracked")}
    tensors = dict(state)
    if segmentation:
        width = planes[-1] * 4
        tensors |= {"conv_seg.0.weight": torch.rand(width, 32, 2, 2, 2), "conv_seg.0.bias": torch.rand(32)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return state


def write_bert(
    folder: Path,
    *,
    head: bool = True,
    old_names: bool = False,
    file: str = "model.safetensors",
    vocabulary: list[str] | None = None,
    **config: object,
) -> dict[str, Tensor]:
    """Write a BERT folder, with `head` as BertForPreTraining does, and return the tensors of the bare model.

    Args:
        folder: created.
        head: prefix the names with `bert.` and add the tensors `cls.`.
        old_names: name LayerNorm's parameters gamma and beta, and store the position ids.
        file: name of the weight file.
        vocabulary: lines of vocab.txt.
        config: more keys of config.json.
    """
    from transformers import BertConfig, BertModel

    tokens = VOCABULARY if vocabulary is None else vocabulary
    sizes = BERT | {"vocab_size": len(tokens)}
    folder.mkdir(parents=True)
    document = {"model_type": "bert", "architectures": ["BertForPreTraining"]} | sizes | config
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bare = {name: tensor.clone() for name, tensor in BertModel(BertConfig(**sizes)).state_dict().items()}
    bare = {n: t + torch.rand(t.shape) if t.is_floating_point() and t.ndim == 1 else t for n, t in bare.items()}
    written = {("bert." if head else "") + name: tensor for name, tensor in bare.items()}
    if old_names:
        written = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for n, t in written.items()
        }
        written[("bert." if head else "") + "embeddings.position_ids"] = torch.arange(512)[None]
    if head:
        written |= {"cls.predictions.bias": torch.rand(len(tokens)), "cls.seq_relationship.weight": torch.rand(2, 16)}
    if file.endswith(".safetensors"):
        save_file(written, folder / file)
    else:
        torch.save(written, folder / file)
    return bare


def full_size_names() -> list[str]:
    """Tensor names of MONAI's ResNet-50 without `fc`."""
    with torch.device("meta"):
        network: nn.Module = resnet50(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False)
    return list(network.state_dict())
