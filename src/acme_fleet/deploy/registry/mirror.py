"""MLflow's model registry as a copy of this one, for people who look there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from acme_fleet.deploy.registry.store import Artifact
from acme_fleet.errors import FleetError
from acme_fleet.outside import one_line, optional

_SHA256, _NUMBER = "acme.sha256", "acme.artifact"
NEWEST = "newest"
"""The alias of each device's last version."""


def mirror(artifacts: Sequence[Artifact], uri: str) -> list[str]:
    """Enter what MLflow has not yet: a registered model for each device, a version an artifact.

    Nothing is sent but names, tags (what the manifest says) and the artifact's path. What MLflow
    has already, by the SHA-256 of the manifest, is left as it is.

    Args:
        artifacts: of the registry, in the order of recording.
        uri: of MLflow, such as ``http://127.0.0.1:5000`` or ``sqlite:///mlflow.db``.

    Returns:
        The new versions, as ``fleet.device 3``.

    Raises:
        FleetError: if MLflow is not installed, cannot be reached, or refuses.
    """
    mlflow = optional("mlflow", "--to needs mlflow: pip install 'acme-fleet[mlflow]'")
    of: dict[str, list[Artifact]] = defaultdict(list)
    for each in artifacts:
        of[f"{each.fleet}.{each.device}"].append(each)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        return [name for model, own in of.items() for name in _entered(client, model, own)]
    except mlflow.exceptions.MlflowException as error:
        raise FleetError(f"MLflow at {one_line(uri, 200)}: {one_line(str(error), 300)}") from error


def _entered(client: Any, model: str, own: Sequence[Artifact]) -> Iterator[str]:
    known, token = {}, None
    while True:
        page = client.search_model_versions(f"name='{model}'", page_token=token)
        known |= {version.tags.get(_SHA256): version for version in page}
        if not (token := page.token):
            break
    if not known:
        _make_model(client, model, own[0])
    for each in own:
        if each.sha256 not in known:
            made = client.create_model_version(model, source=each.path, tags=_tags(each))
            known[each.sha256] = made
            yield f"{model} {made.version}"
    client.set_registered_model_alias(model, NEWEST, known[own[-1].sha256].version)


def _make_model(client: Any, model: str, first: Artifact) -> None:
    if not list(client.search_registered_models(f"name='{model}'")):
        client.create_registered_model(
            model, tags={"acme.fleet": first.fleet, "acme.device": first.device}
        )


def _tags(each: Artifact) -> dict[str, str]:
    manifest = each.manifest
    return {
        _SHA256: each.sha256,
        _NUMBER: str(each.number),
        "acme.recorded": each.recorded,
        "acme.precision": manifest.precision,
        "acme.size_bytes": str(manifest.size_bytes),
        "acme.program": f"{manifest.program.name} {manifest.program.minimum}",
        **{f"acme.accuracy.{one.data}": f"{one.artifact:.4f}" for one in manifest.accuracy},
    }
