"""How the server averages: Flower's own strategies, uniform weights, float32 kept.

Only the arithmetic of a Flower strategy is used: `server.strategy` drives the rounds itself, so sampling and evaluation by Flower never
run. Every reply has passed admission before it comes here, and every weight is the constant 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedTrimmedAvg

from shared.config import AggregationConfig
from shared.errors import StateError
from shared.wire import TRAIN, WEIGHT, TransferUpdate

Arrays = Mapping[str, np.ndarray]


def make_strategy(config: AggregationConfig) -> FedAvg:
    """The Flower strategy that a run's configuration names."""
    nodes: dict[str, Any] = {
        "min_train_nodes": config.min_clients,
        "min_available_nodes": config.min_clients,
        "weighted_by_key": WEIGHT,
    }
    if config.strategy == "fedavgm":
        return FedAvgM(**nodes, server_learning_rate=config.server_learning_rate, server_momentum=config.server_momentum)
    if config.strategy == "fedadam":
        return FedAdam(**nodes, eta=config.server_learning_rate, tau=config.adam_tau)
    if config.strategy == "trimmed-mean":
        return FedTrimmedAvg(**nodes, beta=config.trim_fraction)
    return FedAvg(**nodes)


def average(strategy: FedAvg, round: int, current: Arrays, updates: Sequence[TransferUpdate]) -> dict[str, np.ndarray]:
    """The next transfer layer.

    Args:
        strategy: from `make_strategy`; FedAvgM and FedAdam carry their momentum from call to call (see `strategy_state`).
        round: absolute number of the round, from 1.
        current: the layer that the round started from.
        updates: at least one admitted reply; they are sorted by domain first, so that the sum does not depend on who answered first.
    Returns:
        float32 arrays under the names of ``current``.
    """
    _set_current(strategy, current)
    ordered = sorted(updates, key=lambda update: update.receipt.domain)
    result, _ = strategy.aggregate_train(round, [_reply(update, round) for update in ordered])
    if result is None:
        raise ValueError("nothing to average")
    return {name: result[name].numpy().astype(np.float32) for name in sorted(current)}


def _set_current(strategy: FedAvg, current: Arrays) -> None:
    """What Flower does in `configure_train`, which this house does not use."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = ArrayRecord({name: Array(np.asarray(current[name])) for name in sorted(current)})
    elif isinstance(strategy, FedAdam):
        strategy.current_arrays = {name: np.asarray(current[name]) for name in sorted(current)}


def _reply(update: TransferUpdate, round: int) -> Message:
    """The update as the strategies expect it: one record of arrays and one of metrics."""
    content = update.pack()
    del content["fields"], content["receipt"]
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id=str(round),
        created_at=0.0,
        ttl=1.0,
        message_type=TRAIN,
    )
    return make_message(metadata, content=content)


def strategy_state(strategy: FedAvg) -> dict[str, np.ndarray]:
    """What the strategy remembers between rounds: the momentum of FedAvgM, both moments of FedAdam; empty for the others."""
    if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None:
        return {f"momentum/{index:04d}": np.asarray(array) for index, array in enumerate(strategy.momentum_vector)}
    if isinstance(strategy, FedAdam) and strategy.m_t and strategy.v_t:
        moments = {f"first/{name}": np.asarray(array) for name, array in strategy.m_t.items()}
        return moments | {f"second/{name}": np.asarray(array) for name, array in strategy.v_t.items()}
    return {}


def restore_strategy(strategy: FedAvg, state: Arrays, layer: Arrays) -> None:
    """Puts back what `strategy_state` gave, so that a resumed run goes on as if it had never stopped.

    Raises:
        StateError: when the state belongs to another strategy or to a layer of another form.
    """
    if not state:
        return
    names = sorted(layer)
    if isinstance(strategy, FedAvgM) and sorted(state) == [f"momentum/{index:04d}" for index in range(len(names))]:
        strategy.momentum_vector = [np.array(state[key]) for key in sorted(state)]
        held = dict(zip(names, strategy.momentum_vector, strict=True))
    elif isinstance(strategy, FedAdam) and sorted(state) == sorted([f"{part}/{name}" for part in ("first", "second") for name in names]):
        strategy.m_t = {name: np.array(state[f"first/{name}"]) for name in names}
        strategy.v_t = {name: np.array(state[f"second/{name}"]) for name in names}
        held = dict(strategy.m_t)
    else:
        raise StateError("the checkpoint holds the memory of another aggregation strategy", do="Resume with the configuration of the run.")
    if any(held[name].shape != np.asarray(layer[name]).shape for name in names):
        raise StateError("the checkpoint's aggregation memory does not fit its transfer layer", do="Resume from an older checkpoint.")
