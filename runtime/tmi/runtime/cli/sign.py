"""`tmi sign`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tmi.toolkit.cli.console import echo
from tmi.toolkit.cli.inputs import require_paths

PASSWORD_VARIABLE = "TMI_KEY_PASSWORD"


def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle to sign.", show_default=False)],
    key: Annotated[
        Path, typer.Option(help="Private key, a PEM file on the curve P-256, P-384 or P-521.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing signature.")] = False,
) -> None:
    """Sign a bundle with a private key, offline.

    The bundle is compared with its manifest first. The signature is written to `signature.sig` in the bundle and covers
    every other file. The password of a key is read from the variable TMI_KEY_PASSWORD.

    Examples:

        tmi sign ./bundle --key private.pem
    """
    from tmi.runtime.bundle.signing import sign_bundle

    require_paths(("bundle", bundle))
    signature = sign_bundle(bundle, key, password=os.environ.get(PASSWORD_VARIABLE), force=force)
    echo(f"signed {signature}; check with: tmi verify {bundle} --key PUBLIC.pem")
