"""The prior `any_order`: a causal transformer that can predict the tokens in any order.

Its input also holds the place of the token to predict. A place is an index in the layout's sequence, from 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from stage2_prior.priors.autoregressive import Autoregressive, DecodingState
from stage2_prior.priors.base import token_nll
from stage2_prior.priors.blocks import Block, Blocks, Sizes
from stage2_prior.priors.drawing import Part, Sampler, choose_several, require_finite
from stage2_prior.priors.ordered import OrderedEnds, OrderState, passes_of
from stage2_prior.priors.sections import AttentionParams
from tessera.codes.layout import CodeLayout
from tessera.footprint import LIVE_OUTPUTS
from tessera.parameters.sections import Fraction, Misfit


class Parameters(AttentionParams):
    """The section `any_order` of params.yaml.

    `annealing`: two shares of the schedule. Before the first one every order is random. From the first to the second
    the chance of a random order falls linearly from 1 to 0, and the layout's order takes its place. None: orders stay
    random, which completion needs.
    """

    sampled_by: ClassVar[frozenset[str]] = frozenset({"order"})
    annealing: tuple[Fraction, Fraction] | None

    def fits_together(self) -> None:
        super().fits_together()
        if self.annealing and self.annealing[0] > self.annealing[1]:
            raise Misfit(f"begins at {self.annealing[0]}, after its end at {self.annealing[1]}", "annealing")


class AnyOrder(Autoregressive):
    """p(codes | label) as a product of conditionals in any order. Different orders may give different probabilities.

    `nll` uses the layout's order. Decoding uses it too, unless `sampling.order` asks for another. Given codes come
    first, so every code that is drawn is conditioned on all of them.

    Training shuffles positions. The codes of one position stay together in the order of their depth, since each depth
    codes what those before it left over. Half of the random orders go from level to level and shuffle each by itself,
    which is how images are drawn. In the other half a random share of the positions of all levels comes first, as given
    codes do. So every code is predicted from every set of other positions, and every order of a single level is equally
    likely.

    Source: Yu et al. 2024, "Randomized Autoregressive Visual Generation", section 3.2; Pannatier et al. 2024,
    "σ-GPTs: A New Approach to Autoregressive Models", section 2.
    """

    paced = True

    def __init__(
        self,
        layout: CodeLayout,
        num_classes: int,
        *,
        annealing: tuple[float, float] | None,
        first: int = 0,
        **sizes: Unpack[Sizes],
    ) -> None:
        """Arguments: see the attributes of `Prior` for the layout, and `Parameters` for the sizes."""
        super().__init__(layout, num_classes, first)
        self.annealing, self.noise = annealing, 2 + self.own_tokens
        self.ends = OrderedEnds(layout, num_classes, first, sizes["width"], sizes["dropout"])
        self.transformer = Blocks(**sizes, causal=True)
        levels, _, _, depths = layout.places[self.given_tokens :].unbind(1)
        self.register_buffer("places", torch.arange(layout.num_tokens), persistent=False)
        self.register_buffer("levels", levels, persistent=False)  # of each own token
        self.register_buffer("kinds", levels * (depths.amax() + 1) + depths, persistent=False)  # level and depth
        # The own token that begins each one's position.
        self.register_buffer("firsts", torch.arange(self.own_tokens) - depths, persistent=False)

    def logits(self, tokens: Tensor, labels: Tensor | None, order: Tensor | None = None) -> Tensor:
        """Logits of every own token given label, coarser levels and the true own tokens before it in an order.

        Returns float32 (B, n, V) in the layout's order, whatever the order of prediction.

        Args:
            order: int64 (B, n), the own tokens' numbers among all N, as they come one by one; None: the layout's order.

        Raises:
            ValueError: a row of `order` is no permutation of the own tokens' numbers.
        """
        if order is not None:
            own = self.places[self.given_tokens :].expand(len(tokens), -1)
            if order.shape != own.shape or not torch.equal(order.sort(-1).values, own):
                raise ValueError(f"expected permutations {tuple(own.shape)} of the places from {self.given_tokens} on")
        return self._logits(tokens, labels, order)

    def _logits(self, tokens: Tensor, labels: Tensor | None, order: Tensor | None) -> Tensor:
        whole = self._whole(order, len(tokens))
        before = F.pad(whole[:, :-1], (1, 0), value=self.layout.num_tokens)
        told = F.pad(tokens.gather(1, whole[:, :-1]), (1, 0))
        label = self.ends.label(self.fill_labels(labels, tokens))
        inputs = self.ends.dropout(self.ends.enter(told, before, whole, label, self.ends.tables()))
        hidden = self.transformer(inputs)[:, self.given_tokens :]
        times = whole[:, self.given_tokens :].argsort(-1)  # when each own token comes
        return self.ends.read(hidden.gather(1, times[..., None].expand_as(hidden)))

    def _whole(self, order: Tensor | None, count: int) -> Tensor:
        """An order of all tokens, int64 (count, N): the coarser levels' come first, then the own ones in `order`."""
        if order is None:
            return self.places.expand(count, -1)
        return torch.cat([self.places[: self.given_tokens].expand(count, -1), order], 1)

    def nll(self, tokens: Tensor, labels: Tensor | None, order: Tensor | None = None) -> Tensor:
        """-log p of each own token in nats, (B, n), in the layout's order or in another one, see `logits`."""
        return token_nll(self.logits(tokens, labels, order), tokens[:, self.given_tokens :])

    def forward(
        self, tokens: Tensor, labels: Tensor | None, noise: Tensor | None = None, progress: Tensor | None = None
    ) -> Tensor:
        """The training loss, see `Prior.forward`. Without noise every order is the layout's."""
        order = None if noise is None else self.random_orders(noise, progress)
        return token_nll(self._logits(tokens, labels, order), tokens[:, self.given_tokens :]).mean()

    def random_orders(self, noise: Tensor, progress: Tensor | None = None) -> Tensor:
        """The orders of training, int64 (B, n), as `logits` takes them.

        Args:
            noise: random numbers (B, 2 + n) in [0, 1). They decide whether the order is random, which share of the
                positions comes first, and how positions are shuffled.
            progress: (B,), the share of the learning rate's schedule that is done; None: 0.
        """
        chance, share = noise[:, :1], (2 * noise[:, 1:2] - 1).clamp_min(0)
        # The tokens of a position have equal keys, so that they stay together in their order.
        ranks = noise[:, 2 : 2 + self.own_tokens][:, self.firsts]
        keys = torch.where(ranks < share, ranks - 1, self.levels + ranks)
        order = self.given_tokens + keys.argsort(dim=-1, stable=True)
        if self.annealing is None or progress is None:
            return order
        begin, end = self.annealing
        random = (end - progress[:, None]) / max(end - begin, 1e-9)
        return torch.where(chance < random, order, self.places[self.given_tokens :])

    def begin(self, labels: Tensor, coarser: Tensor) -> OrderState:
        """See `Autoregressive.begin`: decoding in the layout's order."""
        return self._begin(labels, self._whole(None, len(labels)), coarser)

    def _begin(self, labels: Tensor, order: Tensor, known: Tensor) -> OrderState:
        """The state after the first tokens (B, k) of an order (B, N)."""
        return OrderState.after(self.ends, self.transformer.decoder(*order.shape), labels, order, known)

    def advance(self, state: OrderState, position: int, tokens: Tensor | None) -> Tensor:
        """See `Autoregressive.advance`. `position` is a time of the state's order."""
        return state.next(state.last if tokens is None else tokens, position)

    def decode(self, sampler: Sampler, labels: Tensor, coarser: Tensor, forced: Tensor, part: Part) -> Tensor:
        """Draws codes in the sampler's order, see `Prior.decode`. Forced tokens come first.

        Sequences are decoded together where their n-th tokens have the same level and depth for every n. All sequences
        of a batch are decoded together if nothing is forced, or if the same places are forced in all.
        """
        given, uniforms = self.given_tokens, self.token_uniforms(sampler)
        forced = torch.cat([coarser, forced[:, given:]], dim=1)
        known = forced[:, given:] >= 0
        keys = self.places[given:].to(uniforms.dtype).expand_as(uniforms)
        if sampler.order != "layout":  # as in training: levels in turn, each shuffled by itself
            keys = self.levels + sampler.uniforms(self.own_tokens, "order", self.first)[:, self.firsts]
        order = keys.masked_fill(known, -1).argsort(dim=-1, stable=True)
        tokens, times = forced.clone(), torch.where(known.gather(1, order), -1, self.kinds[order])
        groups, members = times.unique(dim=0, return_inverse=True)
        for number, kinds in enumerate(groups):
            rows = (members == number).nonzero()[:, 0]
            begin = int((kinds < 0).sum())
            rest = Part(part.moment(begin, self.own_tokens), part.last, part.share * len(rows) / len(forced))
            whole, numbers = self._whole(given + order[rows], len(rows)), uniforms[rows].gather(1, order[rows])
            drawn = self._draw_rest(sampler, labels[rows], forced[rows], whole, given + begin, numbers[:, begin:], rest)
            tokens[rows] = drawn
        return tokens

    def _draw_rest(
        self, sampler: Sampler, labels: Tensor, tokens: Tensor, order: Tensor, begin: int, uniforms: Tensor, part: Part
    ) -> Tensor:
        """Draws all tokens from a time of an order on, for sequences that are drawn together.

        Args:
            tokens: int64 (B, N) in the layout's order, of which those that come before `begin` are known.
            order: int64 (B, N).
            uniforms: float64 (B, k), a random number for each token that is drawn, as they come.
            part: the part of the image's codes that is drawn.

        Returns:
            int64 (B, N), in the layout's order.
        """
        if begin == self.layout.num_tokens:
            sampler.advance(part.share)
            return tokens
        guided = sampler.guided(range(self.first, len(self.layout.levels)))
        known = tokens.gather(1, order[:, :begin])
        if guided:  # the null label's rows follow the labels' rows in one batch
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
            state = self._begin(labels, torch.cat([order, order]), torch.cat([known, known]))
        else:
            state = self._begin(labels, order, known)
        if sampler.order == "parallel":
            drawn = self._draw_in_passes(sampler, state, guided, known, uniforms, part)
        else:
            levels = self.layout.places[state.first[begin:], 0].tolist()
            previous = state.last if begin > self.given_tokens else None
            drawn = self.draw(sampler, DecodingState(begin, state), guided, levels, uniforms, part, previous=previous)
        return tokens.scatter(1, order[:, begin:], drawn)

    def _draw_in_passes(
        self, sampler: Sampler, state: OrderState, guided: bool, known: Tensor, uniforms: Tensor, part: Part
    ) -> Tensor:
        """Draws the rest of an order, many positions at a time, int64 (B, k) in the order.

        The positions of a pass do not depend on one another, but on all before. A pass draws their codes depth by
        depth, each code given those of its position before it.

        Args:
            known: int64 (B, t), the tokens so far.
            uniforms: float64 (B, k), a random number for each token.
        """
        start = known.shape[1]
        kinds = [(level, depth) for level, _, _, depth in self.layout.places[state.first[start:]].tolist()]
        passes, finite = passes_of(kinds, sampler.decoding_steps), uniforms.new_zeros(())

        def rows(tokens: Tensor) -> Tensor:
            return torch.cat([tokens, tokens]) if guided else tokens

        for number, (positions, depth) in enumerate(passes):
            time, codes, level = known.shape[1], [], kinds[known.shape[1] - start][0]
            numbers = uniforms[:, time - start :][:, : positions * depth].unflatten(1, (positions, depth))
            for i in range(depth):
                if i:
                    logits = state.further_of_each(rows(codes[-1]), time, depth, i)
                else:
                    logits = state.next_of_each(rows(known), positions, depth)
                if guided:
                    logits = sampler.guide(logits, level, part.moment(number, len(passes)))
                finite += logits.amax(-1).sum()
                codes.append(choose_several(sampler, logits, numbers[:, :, i], level))
            state.decoder.forget(positions * depth)
            known = torch.cat([known, torch.stack(codes, 2).flatten(1)], 1)
            sampler.advance(part.share / len(passes))
        require_finite(finite.isfinite())
        return known[:, start:]

    def decoding_bytes(self, device: torch.device, bytes_per_logit: int) -> int:
        """See `Prior.decoding_bytes`. Of `parallel` in one pass: it has the logits of the largest level at once."""
        largest = max(level.height * level.width for level in self.layout.levels[self.first :])
        outputs = LIVE_OUTPUTS * 4 * largest * self.layout.vocabulary
        return super().decoding_bytes(device, bytes_per_logit) + outputs

    def blocks(self) -> Iterable[Block]:
        return self.transformer.layers
