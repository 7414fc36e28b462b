"""A made-up distillation."""

from __future__ import annotations

from typing import Any

from acme_fleet.stratos.run_directory import DistillSummary


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
