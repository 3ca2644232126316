"""Text branch of a prediction: tokenises clinical texts and runs every text encoder of a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tmi.runtime.bundle.contents import bundled_tokenizer
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Engine
from tmi.runtime.inference.embedding_cache import EmbeddingCache, reused_branches
from tmi.runtime.inference.ensemble import Features, encode_text, encoder_graphs
from tmi.runtime.inference.token_padding import concatenate_tokens, group_by_length, trim_padding
from tmi.runtime.serving.results import COPIES
from tmi.runtime.serving.timing import Stopwatch
from tmi.toolkit.clinical.tokenizer import Encoded
from tmi.toolkit.errors import DamagedError


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """Features of one case's text."""

    features: Features
    """Features by name, one row [1,C] each; empty if the case has no text."""
    truncated: bool
    """Whether the text was longer than the encoder's maximum length."""
    reused: tuple[str, ...]
    """The branch's name if its features came from the embedding cache, else empty."""


class TextBranch:
    """Tokenisers and text encoders of a bundle.

    Args:
        bundle: the bundle; it holds the tokenizer file of each text encoder.
        engine: engine that has the bundle open.
        embeddings: cache of features by content; None disables it.

    Raises:
        DamagedError: a text encoder has no tokenizer in the manifest.
    """

    def __init__(self, bundle: Bundle, engine: Engine, embeddings: EmbeddingCache | None) -> None:
        self._engine, self._embeddings, self._manifest = engine, embeddings, bundle.manifest
        self._longest = bundle.manifest.parsed_config().clinical.max_length
        self._tokenizer_of = _tokenizer_files(bundle)
        self._tokenizers = {
            name: bundled_tokenizer(bundle, name) for name in dict.fromkeys(self._tokenizer_of.values())
        }

    def encode(self, texts: Sequence[str | None], watch: Stopwatch) -> list[EncodedText]:
        """Encode texts.

        Texts of equal padded length run as one batch; their features do not depend on the batch.

        Args:
            texts: one text for each case; None for a case without text, which gets no features.
            watch: receives the seconds of the stages `tokenise` and `text`.

        Returns:
            The encoded texts, in the order of `texts`.
        """
        present = [number for number, text in enumerate(texts) if text is not None]
        longest = self._longest
        with watch.stage("tokenise"):
            encoded = {number: self._tokenise([texts[number] or ""]) for number in present}
            # Padding is cut per text: attention ignores it, but the encoder would still compute it.
            tokens = {
                number: {
                    name: trim_padding(one.input_ids_BT, one.attention_mask_BT, longest=longest)
                    for name, one in by_graph.items()
                }
                for number, by_graph in encoded.items()
            }
        results = [EncodedText(features={}, truncated=False, reused=()) for _ in texts]
        with timed_engine(self._engine, watch, "text"):
            for numbers in group_by_length(tokens):
                batch = {
                    name: concatenate_tokens([tokens[number][name] for number in numbers])
                    for name in tokens[numbers[0]]
                }
                features = encode_text(self._engine, self._manifest, batch, cache=self._embeddings)
                for row, number in enumerate(numbers):
                    results[number] = EncodedText(
                        features={name: array[row : row + 1] for name, array in features.items()},
                        truncated=any(one.truncated_B[0] for one in encoded[number].values()),
                        reused=reused_branches("text", features, self._embeddings, row=row),
                    )
        return results

    def _tokenise(self, texts: Sequence[str]) -> dict[str, Encoded]:
        """Tokens by name of the text graph; each distinct tokenizer runs once."""
        by_file = {
            name: tokenizer.encode(texts, max_length=self._longest) for name, tokenizer in self._tokenizers.items()
        }
        return {graph: by_file[name] for graph, name in self._tokenizer_of.items()}


@contextmanager
def timed_engine(engine: Engine, watch: Stopwatch, stage: str) -> Iterator[None]:
    """Time a stage of the engine. Seconds of copies to and from a device are moved to the stage `copies`."""
    before = engine.copied_seconds
    with watch.stage(stage):
        yield
    if before is not None and engine.copied_seconds is not None:
        watch.move(stage, COPIES, engine.copied_seconds - before)


def _tokenizer_files(bundle: Bundle) -> dict[str, str]:
    """Map each text graph to its tokenizer file."""
    files: dict[str, str] = {}
    for spec in encoder_graphs(bundle.manifest, "text"):
        if spec.tokenizer is None:
            raise DamagedError(f"bundle: graph {spec.name} names no tokenizer", fix="export the bundle again")
        files[spec.name] = spec.tokenizer
    return files
