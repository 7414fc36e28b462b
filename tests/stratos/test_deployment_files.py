"""Files that serve a student: what they say, and that SkyPilot reads them."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from acme_fleet.errors import FleetError
from acme_fleet.stratos.deployment import (
    SCRIPT,
    SERVICE,
    TASK,
    SkyTask,
    serving_files,
    write_serving,
)
from made_up_distillation import summary

_STUDENT = Path("/models/my student")


def test_a_rented_server_gets_a_task_and_a_service():
    files = serving_files(summary(), _STUDENT, 4)
    assert list(files) == [SCRIPT, TASK, SERVICE]
    task, service = (yaml.safe_load(files[name]) for name in (TASK, SERVICE))
    for each in (task, service):
        SkyTask.model_validate(each)
    assert service.pop("service")["readiness_probe"]["path"] == "/health"
    assert service == task
    assert task["resources"] == {
        **{"infra": "aws/*/us-east-1a", "instance_type": "g6.xlarge", "accelerators": "L4:1"},
        **{"use_spot": True, "ports": 8000},
    }
    assert task["secrets"] == {"VLLM_API_KEY": None}
    assert task["file_mounts"] == {"/student": str(_STUDENT)}
    words = shlex.split(task["run"])
    assert words[:3] == ["vllm", "serve", "/student"]
    assert words[words.index("--max-num-seqs") + 1] == "4"
    assert words[words.index("--dtype") + 1] == "float16"
    region = summary(zone=None, region="us-east-1", billing="on demand")
    resources = yaml.safe_load(serving_files(region, _STUDENT, 1)[TASK])["resources"]
    assert (resources["infra"], resources["use_spot"]) == ("aws/us-east-1", False)
    with pytest.raises(ValidationError, match="resource"):
        SkyTask.model_validate(task | {"resource": {}})


def test_an_own_machine_gets_a_script_that_needs_a_secret(tmp_path: Path):
    own = summary(billing="owned", provider="own", zone=None, accelerators=None)
    assert write_serving(own, _STUDENT, 1, tmp_path / "out") == [SCRIPT]
    script = tmp_path / "out" / SCRIPT
    options: dict[str, Any]
    ran, options = ["/bin/sh", str(script)], {"capture_output": True, "text": True}
    done = subprocess.run(ran, env={"PATH": "/"}, **options)
    assert done.returncode != 0
    assert "set it to a secret of your own" in done.stderr
    content = script.read_text()
    script.write_text(content.replace("exec vllm", "exec /bin/echo"))
    env = {"PATH": "/", "VLLM_API_KEY": "x"}
    done = subprocess.run(ran, env=env, **options)
    assert done.stdout.startswith(f"serve {_STUDENT} --served-model-name additions")
    with pytest.raises(FleetError, match=r"vllm\.sh exists already; it was not changed"):
        write_serving(own, _STUDENT, 1, tmp_path / "out")


@pytest.mark.slow
def test_skypilot_reads_the_files(monkeypatch: pytest.MonkeyPatch):
    """By the schema of its own parser; nothing is launched."""
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    jsonschema: Any = pytest.importorskip("jsonschema")
    pytest.importorskip("sky", reason="pip install skypilot")
    schemas: Any = importlib.import_module("sky.utils.schemas")
    files = serving_files(summary(), _STUDENT, 4)
    for name in (TASK, SERVICE):
        content = yaml.safe_load(files[name])
        jsonschema.validate(content, schemas.get_task_schema())
        jsonschema.validate(content["resources"], schemas.get_resources_schema())
        if "service" in content:
            jsonschema.validate(content["service"], schemas.get_service_schema())
    assert json.dumps(schemas.get_task_schema())
