"""Which models are served, by whom and how fast, and how long their answers are. Knows nothing of batches in line.

| key | what |
|---|---|
| `pressrun:models` | model cards by worker, with the time of their last heartbeat |
| `pressrun:served` | the time when each model was last served (`retired.py` forgets those of long ago) |
| `pressrun:answer-tokens` | by model, how long answers were in the batches that ended last |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from .connection import Connection
from .fields import as_text
from .generation import NEUTRAL
from .records import EMBEDDINGS, Batch, ModelCard, Speed

MODELS, SERVED, ANSWER_TOKENS = "pressrun:models", "pressrun:served", "pressrun:answer-tokens"
MODEL_TTL_S = 30
KNOWN_S = 86400  # A model that no worker has served for so long is as one that never was.
LEARN = 0.3  # The weight of the newest batch in how long answers are.


class ModelCards(Connection):
    """What workers say of themselves. Thread-safe; every method is one or a few round trips."""

    def touch_model(self, card: ModelCard) -> None:
        """Say that a worker serves a model, for the next `MODEL_TTL_S` seconds."""
        now = self.now()
        pipe = self.redis.pipeline(transaction=False)
        pipe.hset(MODELS, card.worker, json.dumps([now, asdict(card)]))
        pipe.hset(SERVED, card.id, f"{now:.0f}")
        pipe.execute()

    def forget_model(self, worker: str) -> None:
        """Say that a worker serves nothing any more."""
        self.redis.hdel(MODELS, worker)

    def models(self) -> list[ModelCard]:
        """One card for every model that a live worker serves, of one that says how it is drawn if there is such."""
        cards: dict[str, ModelCard] = {}
        for card in sorted(self.live_workers(), key=lambda card: card.default_sampling is None):
            cards.setdefault(card.id, card)
        return list(cards.values())

    def samplings(self) -> dict[str, Mapping[str, float]]:
        """How the models that live workers serve draw what a request says nothing of."""
        said = {card.id: card.default_sampling for card in self.models()}
        return {
            model: {name: sampling.get(name, neutral) for name, neutral in NEUTRAL.items()}
            for model, sampling in said.items()
            if sampling is not None
        }

    def served(self) -> dict[str, float]:
        """Every model that was ever served, and when it last was."""
        return {as_text(model): float(at) for model, at in self.redis.hgetall(SERVED).items()}

    def known_models(self) -> set[str]:
        """The models that work is taken for: it waits for their workers, should none be there now."""
        since = self.now() - KNOWN_S
        lately = {model for model, at in self.served().items() if at >= since}
        # Workers of an earlier version say only that they live.
        return lately | {card.id for card in self.live_workers()}

    def speed(self, model: str) -> Speed:
        """What a model's live workers do together; one that has measured nothing yet is taken to be like the others."""
        rates = [card.tokens_per_s for card in self.live_workers() if card.id == model]
        known = [rate for rate in rates if rate > 0]
        return Speed(tokens_per_s=sum(known) / len(known) * len(rates) if known else 0.0, num_workers=len(rates))

    def live_workers(self) -> list[ModelCard]:
        """The card of every live worker."""
        cards = []
        now = self.now()
        for worker, raw in sorted(self.redis.hgetall(MODELS).items()):
            seen, fields = json.loads(raw)
            if seen < now - MODEL_TTL_S:
                self.redis.hdel(MODELS, worker)
                continue
            # A worker of a later version may say more.
            cards.append(ModelCard(**{name: fields[name] for name in fields if name in ModelCard.__dataclass_fields__}))
        return cards

    def answer_tokens(self) -> dict[str, float]:
        """How long answers are, by model: the mean of the batches that ended last."""
        return {as_text(model): float(mean) for model, mean in self.redis.hgetall(ANSWER_TOKENS).items()}

    def learn_answer_tokens(self, batch: Batch) -> None:
        """Remember how long the answers of an ended batch were: an estimate, so if two do so at once one may win."""
        if batch.model and batch.counts.completed and batch.endpoint != EMBEDDINGS:
            mean = batch.usage.output_tokens / batch.counts.completed
            before = float(self.redis.hget(ANSWER_TOKENS, batch.model) or mean)
            self.redis.hset(ANSWER_TOKENS, batch.model, f"{before + LEARN * (mean - before):.2f}")
