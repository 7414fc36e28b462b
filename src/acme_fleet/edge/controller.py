"""The LSTM that proposes headers, trained by REINFORCE (METHOD 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Proposals:
    """A batch of decision sequences and what the controller thinks of them.

    Attributes:
        decisions: 4B for each child.
        log_probability: of each whole sequence.
        entropy: mean over the decisions.
        predicted_accuracy: in (0, 1).
    """

    decisions: Int64[Tensor, "children decisions"]
    log_probability: Float[Tensor, " children"]
    entropy: Float[Tensor, " children"]
    predicted_accuracy: Float[Tensor, " children"]

    def __getitem__(self, index: Int64[Tensor, " chosen"]) -> Proposals:
        """The proposals at ``index``."""
        return Proposals(
            self.decisions[index],
            self.log_probability[index],
            self.entropy[index],
            self.predicted_accuracy[index],
        )


class Controller(nn.Module):
    """One LSTM layer; each step's input is the embedding of the previous choice."""

    def __init__(self, options: list[int], generator: torch.Generator, hidden: int = 100) -> None:
        super().__init__()
        self.options = options
        self.hidden = hidden
        self.start = nn.Parameter(torch.empty(hidden))
        self.embeddings = nn.ModuleList(nn.Embedding(n, hidden) for n in options)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.choices = nn.ModuleList(nn.Linear(hidden, n) for n in options)
        self.accuracy = nn.Linear(hidden, 1)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)

    def propose(self, children: int, generator: torch.Generator) -> Proposals:
        """Draw decision sequences from the policy π."""
        return self._walk(children, None, generator)

    def judge(self, decisions: Int64[Tensor, "children decisions"]) -> Proposals:
        """The policy's view of given decisions."""
        return self._walk(len(decisions), decisions, None)

    def _walk(
        self,
        children: int,
        given: Int64[Tensor, "children decisions"] | None,
        generator: torch.Generator | None,
    ) -> Proposals:
        x = self.start.expand(children, -1)
        state = (x.new_zeros(children, self.hidden), x.new_zeros(children, self.hidden))
        taken, log_probabilities, entropies = [], [], []
        for step, choice in enumerate(self.choices):
            state = self.cell(x, state)
            log_p = F.log_softmax(choice(state[0]), dim=1)
            if given is None:
                decision = torch.multinomial(log_p.detach().exp(), 1, generator=generator)[:, 0]
            else:
                decision = given[:, step]
            taken.append(decision)
            log_probabilities.append(log_p.gather(1, decision[:, None])[:, 0])
            entropies.append(-(log_p.exp() * log_p).sum(dim=1))
            x = self.embeddings[step](decision)
        final, _ = self.cell(x, state)  # has read the last decision too
        return Proposals(
            decisions=torch.stack(taken, dim=1),
            log_probability=torch.stack(log_probabilities).sum(dim=0),
            entropy=torch.stack(entropies).mean(dim=0),
            predicted_accuracy=torch.sigmoid(self.accuracy(final))[:, 0],
        )


def reinforce_loss(
    proposals: Proposals,
    rewards: Float[Tensor, " children"],
    baseline: float,
    entropy_weight: float,
) -> Float[Tensor, ""]:
    """The loss that raises E[R]: −(R − b)·log π − entropy, and the predictor's error.

    Args:
        proposals: what was drawn, with gradients.
        rewards: validation accuracy of each child.
        baseline: moving average of earlier rewards.
        entropy_weight: how much exploration is worth.
    """
    advantage = rewards - baseline
    policy = -(advantage * proposals.log_probability).mean()
    prediction = F.mse_loss(proposals.predicted_accuracy, rewards)
    return policy - entropy_weight * proposals.entropy.mean() + prediction
