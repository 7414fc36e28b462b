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
from acme_fleet.stratos.run_directory import DistillSummary

_STUDENT = Path("/models/my student")


def summary(**chosen: Any) -> DistillSummary:
    prediction = {"value": 1.0, "low": 0.5, "high": 2.0, "source": "predicted"}
    marked = {"right": 1, "asked": 2, "low": 0.1, "high": 0.9}
    served = {"answers": 2, "tokens": 9, "mean_s": 0.2, "p50_s": 0.2, "p95_s": 0.3}
    served |= {"first_p50_s": 0.1, "first_p95_s": 0.1}
    taken = {
        **{"pair": "t → t/1-2", "teacher": "t", "student": "t/1-2", "by": "logits"},
        **{"server": "g6.xlarge", "provider": "AWS", "region": "us-east-1a", "zone": "us-east-1a"},
        **{"billing": "spot", "accelerators": "L4:1", "usd_per_hour": 0.35, "pilot": None},
        **dict.fromkeys(("training_s", "training_usd", "latency_s"), prediction),
        "data": {},
    }
    content = {
        **{"name": "additions", "seed": 0, "chosen": taken | chosen, "params": 10},
        **{"texts": {"made": 3}, "steps": 1, "planned_steps": 1, "best_step": 1},
        **{"ended_by": "epochs", "validation": {"start": 2.0, "student": 1.0}, "replayed": None},
        **dict.fromkeys(("student", "start", "teacher"), marked),
        **dict.fromkeys(("served", "taught"), served),
        **{"examples": [], "precision": "float16", "min_accuracy": None},
        **{"max_p95_latency_ms": None},
        **dict.fromkeys(("training_s", "training_usd", "evaluation_s", "evaluation_usd"), 1.0),
    }
    return DistillSummary.model_validate(content)


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
