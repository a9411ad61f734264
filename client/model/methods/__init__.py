"""Methods of moving interests between domains: each a file here and a name of ``model.method``, all behind one interface.

A method is a module that maps a `Batch` to the loss of each user, says how a passport becomes an interest here (``transferred``), and
declares which of its arrays the server averages (`shared.transfer_layer.shared_shapes`). Everything it holds is in the joint vector that is
clipped. All of them pass one contract suite (`tests/contracts`) and the conformance checks of the DP client.
"""

from __future__ import annotations

from shared.config import RunConfig

from .residual import InterestModel


def make_model(config: RunConfig, *, seed: int) -> InterestModel:
    """The model of the method that the configuration names, in its public initial state."""
    method = config.model.method
    if method == "adversarial":
        from .adversarial import AdversarialModel

        return AdversarialModel(config, seed=seed)
    if method == "maml":
        from .maml import MamlModel

        return MamlModel(config, seed=seed)
    if method == "knowledge-mf":
        from .knowledge_mf import KnowledgeModel

        return KnowledgeModel(config, seed=seed)
    return InterestModel(config, seed=seed)
