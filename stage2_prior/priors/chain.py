"""The prior `chain`: one prior for each level of codes, coarsest first. Each of these priors is called a link.

A link may be any prior but a chain. It models the codes of its level, given the label and the codes of coarser levels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from stage2_prior.priors.base import Prior
from stage2_prior.priors.build import build_prior
from stage2_prior.priors.drawing import Part, Sampler
from stage2_prior.priors.sections import PACKAGE, PriorParams
from tessera.codes.layout import CodeLayout
from tessera.errors import UserError
from tessera.parameters.sections import Misfit, nested_choice

Link = nested_choice(PACKAGE, {"chain": "a chain of chains is one of more links"})


class Parameters(PriorParams):
    """The section `chain` of params.yaml. `links`: one prior for each level, coarsest first."""

    links: Annotated[tuple[Link, ...], Field(min_length=1)]

    def learns(self) -> bool:
        return any(link.chosen.learns() for link in self.links)

    def draws_by(self) -> frozenset[str]:
        return frozenset().union(*(link.chosen.draws_by() for link in self.links))

    def arguments(self) -> dict[str, Any]:
        """The arguments of `Chain`, as JSON values: `links`, a list of {"name", "params"}, one for each level.

        The chain's own `largest_softmax` is left out, because each link splits its codes by its own.
        """
        return {"links": [{"name": link.name, "params": link.chosen.arguments()} for link in self.links]}

    def fits_together(self) -> None:
        for index, link in enumerate(self.links):
            try:
                link.fits_together()
            except Misfit as error:
                raise Misfit(error.reason, "links", str(index), *error.path) from None

    def check_codebooks(self, sizes: tuple[int, ...]) -> None:
        for index, link in enumerate(self.links):
            try:
                link.chosen.check_codebooks(sizes[: index + 1])  # a link is also given the coarser levels
            except Misfit as error:
                raise Misfit(error.reason, "chain", "links", str(index), *error.path) from None


class Chain(Prior):
    """p(codes | label) as the product over levels of p(level | coarser levels, label).

    Source: Razavi, van den Oord and Vinyals 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.2.
    """

    def __init__(self, layout: CodeLayout, num_classes: int, *, links: list[dict[str, Any]], first: int = 0) -> None:
        """`links`: name and arguments of each level's prior, {"name", "params"}, coarsest first.

        Raises:
            UserError: there are not as many links as levels.
        """
        levels = len(layout.levels) - first
        if len(links) != levels:
            raise UserError(
                f"stage2_prior.chain.links: {len(links)} priors for the {levels} levels of these codes; give one a "
                "level, coarsest first"
            )
        super().__init__(layout, num_classes, first)
        self.links = nn.ModuleList(
            build_prior(
                {
                    **link,
                    "layout": CodeLayout(layout.image_shape, layout.levels[: first + i + 1]).to_json(),
                    "num_classes": num_classes,
                },
                first=first + i,
            )
            for i, link in enumerate(links)
        )
        # Links work some arguments out themselves: a transformer, for example, its whole configuration.
        self.resolved_params["links"] = [{"name": link.name, "params": link.params} for link in self.links]
        self.trained = any(link.trained for link in self.links)
        self.exact = all(link.exact for link in self.links)
        self.uses_labels = any(link.uses_labels for link in self.links)
        self.noise = max(link.noise for link in self.links)
        self.paced = any(link.paced for link in self.links)

    def fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Fits every link, see `Prior.fit`. The batches are iterated over once for each link."""
        for link in self.links:
            end = link.layout.num_tokens
            link.fit((tokens[:, :end], labels) for tokens, labels in batches)

    def chained(self) -> list[Prior]:
        """See `Prior.chained`."""
        return list(self.links)

    def nll(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """See `Prior.nll`."""
        return torch.cat([link.nll(tokens[:, : link.layout.num_tokens], labels) for link in self.links], dim=1)

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        noise: Tensor | None = None,
        progress: Tensor | None = None,
        link: int | None = None,
    ) -> Tensor:
        """The training loss of one link, or the mean of all links' losses weighted by their numbers of tokens.

        Args:
            link: the link's number, the coarsest first; None for all.

        Returns:
            Mean nats a token, a scalar.
        """
        if link is not None:
            chosen = self.links[link]
            return chosen(tokens[:, : chosen.layout.num_tokens], labels, noise, progress)
        losses = [part(tokens[:, : part.layout.num_tokens], labels, noise, progress) for part in self.links]
        return sum(loss * part.own_tokens for loss, part in zip(losses, self.links, strict=True)) / self.own_tokens

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile each link that is trained, as `torch.nn.Module.compile` does: each has a loss of its own."""
        for link in self.links:
            if link.trained:
                link.compile(*arguments, **options)

    def estimate(self, tokens: Tensor, labels: Tensor | None, again: int = 0) -> tuple[Tensor, Tensor]:
        """See `Prior.estimate`. The links' errors are independent, so their variances add."""
        found = [link.estimate(tokens[:, : link.layout.num_tokens], labels, again) for link in self.links]
        return torch.cat([nats for nats, _ in found], dim=1), sum(variance for _, variance in found)

    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws the codes link by link, see `Prior.decode`. Each link is given the tokens of those before it."""
        count, tokens = self.layout.num_tokens, coarser
        for link in self.links:
            end = link.layout.num_tokens
            own = part.of_link(link.given_tokens, end, count)
            tokens = link.decode(sampler, labels, tokens, forced[:, :end], own)
        return tokens

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """Bytes of memory for each further sequence, see `Prior.decoding_bytes`: those of the costliest link."""
        return max(link.decoding_bytes(device, bytes_per_logit) for link in self.links)

    def measured_at_once(self, batch_size: int) -> int:
        """See `Prior.measured_at_once`."""
        return min(link.measured_at_once(batch_size) for link in self.links)

    def checkpoint_gradients(self) -> None:
        """See `Prior.checkpoint_gradients`."""
        for link in self.links:
            if link.trained:
                link.checkpoint_gradients()
