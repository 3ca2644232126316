"""Text branch of a prediction: tokenises clinical texts and runs every text encoder of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tmi.runtime.bundle.contents import bundled_tokenizer
from tmi.runtime.bundle.reader import Bundle
from tmi.runtime.engines.registry import Engine
from tmi.runtime.inference.embedding_cache import EmbeddingCache
from tmi.runtime.inference.ensemble import Features, encode_text, encoder_graphs
from tmi.runtime.inference.token_padding import Tokens, concatenate_tokens, group_by_length, trim_padding
from tmi.toolkit.errors import DamagedError


@dataclass(frozen=True, kw_only=True)
class CaseTokens:
    """Tokens of one case's text."""

    by_graph: Mapping[str, Tokens]
    """Name of a text graph -> its tokens [1, T]; each graph has its own tokenizer."""
    truncated: bool
    """Whether the text was longer than the encoder's maximum length."""


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """Features of one case's text."""

    features: Features
    """Features by name, one row [1,C] each; empty if the case has no text."""
    truncated: bool
    """Whether the text was longer than the encoder's maximum length."""
    reused: bool
    """Whether its features came from the embedding cache."""


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
        self._longest = bundle.manifest.config.clinical.max_length
        self._tokenizer_of = _tokenizer_files(bundle)
        self._tokenizers = {
            name: bundled_tokenizer(bundle, name) for name in dict.fromkeys(self._tokenizer_of.values())
        }

    def tokenise(self, texts: Sequence[str | None]) -> list[CaseTokens | None]:
        """Tokenise texts.

        Args:
            texts: one text for each case; None for a case without text.

        Returns:
            The tokens of each text, without the padding that all encoders ignore; None without a text.
        """
        return [None if text is None else self._tokenise(text) for text in texts]

    def encode(self, tokens: Sequence[CaseTokens | None]) -> list[EncodedText]:
        """Encode tokenised texts.

        Texts of equal padded length run as one batch; their features do not depend on the batch.

        Args:
            tokens: the tokens of each case; None for a case without text, which gets no features.

        Returns:
            The encoded texts, in the order of `tokens`.
        """
        results = [EncodedText(features={}, truncated=False, reused=False) for _ in tokens]
        present = {number: one for number, one in enumerate(tokens) if one is not None}
        for numbers in group_by_length({number: one.by_graph for number, one in present.items()}):
            batch = {
                name: concatenate_tokens([present[number].by_graph[name] for number in numbers])
                for name in present[numbers[0]].by_graph
            }
            encoded = encode_text(self._engine, self._manifest, batch, cache=self._embeddings)
            for row, number in enumerate(numbers):
                results[number] = EncodedText(
                    features={name: array[row : row + 1] for name, array in encoded.features.items()},
                    truncated=present[number].truncated,
                    reused=any(encoded.reused_B[row : row + 1]),
                )
        return results

    def _tokenise(self, text: str) -> CaseTokens:
        """Tokens by name of the text graph; each distinct tokenizer runs once."""
        by_file = {
            name: tokenizer.encode([text], max_length=self._longest) for name, tokenizer in self._tokenizers.items()
        }
        return CaseTokens(
            # Padding is cut per text: attention ignores it, but the encoder would still compute it.
            by_graph={
                graph: trim_padding(by_file[name].input_ids_BT, by_file[name].attention_mask_BT, longest=self._longest)
                for graph, name in self._tokenizer_of.items()
            },
            truncated=any(bool(encoded.truncated_B[0]) for encoded in by_file.values()),
        )


def _tokenizer_files(bundle: Bundle) -> dict[str, str]:
    """Map each text graph to its tokenizer file."""
    files: dict[str, str] = {}
    for spec in encoder_graphs(bundle.manifest, "text"):
        if spec.tokenizer is None:
            raise DamagedError(f"bundle: graph {spec.name} names no tokenizer", fix="export the bundle again")
        files[spec.name] = spec.tokenizer
    return files
