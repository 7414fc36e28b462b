"""The report's words for newcomers: each is explained where the reader points, and at the end."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A word and its explanation."""

    word: str
    text: str


GLOSSARY = {
    "accuracy": Entry(
        "right answers", "Share of a device's own test samples that a model answers right."
    ),
    "backbone": Entry(
        "backbone", "The part of the reference that a device got: cut in width and depth, frozen."
    ),
    "candidate": Entry(
        "candidate", "A cut of the reference at one precision, one of many to choose from."
    ),
    "cluster": Entry("cluster", "An edge server and its devices; they share a backbone."),
    "coarse": Entry(
        "coarse model",
        "A device's model as it came, before it learned from the device's data.",
    ),
    "depth": Entry("depth", "Number of Transformer layers that are kept."),
    "device": Entry("device", "One participant: it has private data, and gets a model of its own."),
    "edge": Entry(
        "edge server", "Stands between the cloud and its devices, and searches their header."
    ),
    "final": Entry(
        "final model", "The model that ships: the best by the device's validation data."
    ),
    "front": Entry("front", "Candidates that no other one beats in loss, energy and size at once."),
    "header": Entry("header", "The small network behind the backbone that gives the answer."),
    "importance": Entry("importance", "How much a neuron matters to the loss on a device's data."),
    "int8": Entry("int8", "Weights of one byte each, in place of four bytes (float32)."),
    "latency": Entry(
        "time for an answer",
        "Seconds of one input in PyTorch on the machine of the run, median; of a language model "
        "all tokens of a text at once, before it writes any.",
    ),
    "limit": Entry("limit", "Bytes that the device may spend on the model's file."),
    "linear": Entry(
        "linear header", "One matrix behind the same backbone, trained on the same data."
    ),
    "loss": Entry("loss", "How wrong a model is; smaller is better."),
    "raw": Entry(
        "raw data", "A device's training and validation samples as stored; they never leave it."
    ),
    "reference": Entry(
        "whole reference", "The large model that every device's model was cut from."
    ),
    "round": Entry(
        "round", "A device learns, sends importance or weights, and gets a mixture back."
    ),
    "size": Entry(
        "size",
        "Bytes of the model's file as it ships: backbone and header, all weights. An exported "
        "artifact's size counts all of its files.",
    ),
    "ten lines": Entry(
        "ten lines",
        "What you would do instead: keep the checkpoint whole in int8, and fit a logistic "
        "regression on each device.",
    ),
    "test": Entry("test samples", "Samples of the device that chose nothing and trained nothing."),
    "validation": Entry("validation data", "Samples that choose among models, and train none."),
    "width": Entry("width", "Share of the attention heads and neurons that are kept."),
}
