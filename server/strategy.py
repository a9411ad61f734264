"""One run from hello to delivery: the server's only choreographer.

::

    hello -> moments -> centroids -> descriptor -> checkpoint 0 -> [passports, out of band]
          -> train -> admission -> average -> line in rounds.jsonl -> checkpoint r -> receipts kept     (R times)
          -> deliver

Waiting is bounded everywhere. A bad reply is dropped and written down by code. A round that got too few good replies is repeated a bounded
number of times, and only those who have not answered well are asked again: the replies of the others still hold, because the incoming layer
is the same, and asking them again could cost them an intent. A client that did answer but whose reply was lost answers from its disk, by
its idempotency key, without a new debit.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from shared import wire
from shared.config import RunConfig
from shared.errors import AdmissionRefused, FederationError, RunFolderError
from shared.interest_space import InterestSpace, Moments
from shared.wire import TransferUpdate

from .admission import NO_REPLY, Admission, Inadmissible
from .aggregation import average, make_strategy, restore_strategy, strategy_state
from .checkpoints import Checkpoint, Checkpoints, replace_file
from .messenger import Messenger, Traffic
from .outcome import Outcome
from .partners import Partners
from .receipts import RECEIPTS_FILE, ReceiptsFile, newest
from .round_log import RoundLog, RoundReport
from .run_contract import Signing, forget, greeting, keep
from .too_few import TooFewClients as TooFewClients
from .too_few import too_few

LOG = logging.getLogger("isthmus.server")
ATTEMPTS = 3
"""How often clients are asked for one round before the run ends with `TooFewClients`."""
QUERY_ATTEMPTS = 2
"""How often a client is asked anything else before it is left out."""
UNREAD = frozenset({"refused-bundle", "refused-version", "refused-signature"})
"""Refusals that come before a client looks into a run's contract: its ledger knows nothing of the run."""
PASSING = frozenset({NO_REPLY, "error", "unavailable"})
"""Codes of failures that may pass."""
CHANCES = 2
"""How often a node that was left out for such a failure is greeted again, before a later round."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): stages are hello, moments, centroids, descriptor, train and deliver."""


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


def _nothing(checkpoint: Checkpoint) -> None:
    del checkpoint


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """Drives one run over a Flower Grid.

    Args:
        config: of the run, its noise solved.
        folder: of the run; ``transfer_layer/``, ``rounds.jsonl`` and ``federation.json`` are written there.
        expected_clients: how many to wait for; by default all who are enrolled, or ``aggregation.min_clients``.
        before_rounds: called once with checkpoint 0, after the space is fixed and before round 1: the time for passports.
        receipts: the file of last receipts, which outlives the run; by default ``receipts.json`` in its folder.
        signing: signs the run's contract; None in simulations, where nobody checks one.
    """

    grid: Grid
    config: RunConfig
    folder: Path
    partners: Partners = field(default_factory=Partners)
    expected_clients: int | None = None
    progress: Progress = _silent
    before_rounds: Callable[[Checkpoint], None] = _nothing
    text_dimension: int = wire.TEXT_DIMENSION
    receipts: Path | None = None
    signing: Signing | None = None
    _run_id: str = ""
    _met: set[int] = field(default_factory=set)
    _again: Counter[int] = field(default_factory=Counter)
    _admission: Admission = field(init=False)
    _messenger: Messenger = field(init=False)
    _traffic: dict[str, Traffic] = field(default_factory=dict)

    def run(self, *, resume: bool = False, start: Checkpoint | None = None) -> Outcome:
        """Runs to the end.

        Args:
            resume: go on from the newest whole checkpoint in the folder, under the same run id and configuration.
            start: begin a new run in the space and from the initial layer of this checkpoint of another one (controls).
        Raises:
            FederationError: too few clients, nothing to resume, or a resume under another contract.
            StorageError: a checkpoint cannot be written.
        """
        self._messenger = Messenger(self.grid, self.config.aggregation.round_timeout_s)
        checkpoints = Checkpoints(self.folder / "transfer_layer")
        kept = ReceiptsFile(self.receipts or self.folder / RECEIPTS_FILE)
        checkpoint = self._opening(checkpoints, resume, start)
        self._remember(kept, checkpoint)
        self._run_id = checkpoint.run_id if checkpoint else self._named()
        self._admission = Admission(config=self.config, run_id=self._run_id, partners=self.partners, text_dimension=self.text_dimension)
        self._assemble(first=keep(self.folder, greeting(self.config, self._run_id, self.signing)))
        if checkpoint is None:
            checkpoint = self._found(start)
            checkpoints.save(checkpoint)
        else:
            self._hand_out(checkpoint.space)
        self._note_traffic()
        if checkpoint.round == 0:
            self.before_rounds(checkpoint)
        checkpoint = self._rounds(checkpoint, checkpoints, kept)
        return self._deliver(checkpoint)

    # --- opening ---------------------------------------------------------------------------------------------------------------

    def _opening(self, checkpoints: Checkpoints, resume: bool, start: Checkpoint | None) -> Checkpoint | None:
        if not resume:
            if checkpoints.rounds():
                raise RunFolderError(f"{self.folder} holds a run already", do="Resume it, or choose another folder.")
            if start is not None and start.config.model != self.config.model:
                raise FederationError("the starting point was made for another model", do="Use the same [model] table in both runs.")
            return None
        checkpoint, damaged = checkpoints.newest()
        for what in damaged:
            LOG.warning("%s; going on from round %d", what, checkpoint.round)
        if checkpoint.config.config_hash != self.config.config_hash:
            raise FederationError(
                "the configuration is not the one this run began with", do="Resume with the run folder's own config.toml, or start anew."
            )
        RoundLog(self.folder / "rounds.jsonl").keep_until(checkpoint.round)
        return checkpoint

    def _remember(self, kept: ReceiptsFile, checkpoint: Checkpoint | None) -> None:
        """The last receipt of each domain. The file is written after the checkpoint, so after a crash either may be ahead."""
        of_this_run = checkpoint.receipts.values() if checkpoint else ()
        self.partners.receipts = newest((*kept.load().values(), *self.partners.receipts.values(), *of_this_run))
        if of_this_run:
            kept.keep(self.partners.receipts)

    def _named(self) -> str:
        """The name of a run without a checkpoint: a new one, or the one under which ledgers may hold a reservation since a crash."""
        path = self.folder / "run_id.json"
        if path.is_file():
            with suppress(ValueError, KeyError, TypeError):
                kept = json.loads(path.read_text(encoding="utf-8"))
                if kept["config_hash"] == self.config.config_hash:
                    return str(kept["run_id"])
        name = f"{self.config.name[:64]}-{secrets.token_hex(8)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"run_id": name, "config_hash": self.config.config_hash}).encode())
        return name

    def _assemble(self, *, first: bool) -> None:
        """Waits for clients and greets them; ``first``: nobody was greeted with this contract before."""
        least = self.config.aggregation.min_clients
        wanted = max(self.expected_clients or self.partners.expected or least, least)
        nodes = self._messenger.wait_for_nodes(wanted, self.config.aggregation.wait_s)
        dropped = self._greet(nodes) if nodes else []
        if first and not self.partners.nodes and UNREAD.issuperset(code for _, code in dropped):
            forget(self.folder)
        self._enough("hello", dropped)
        self.progress("hello", len(self.partners.nodes), wanted)

    def _greet(self, nodes: Sequence[int]) -> list[tuple[str, str]]:
        """Says hello and pins each node to the domain it names. Returns who was left out and why."""
        hello = greeting(self.config, self._run_id, self.signing).pack()
        self._met.update(nodes)
        dropped: list[tuple[str, str]] = []
        for node, reply in self._persist(wire.HELLO, dict.fromkeys(nodes, hello)).items():
            try:
                if isinstance(reply, Inadmissible):
                    raise reply
                assert isinstance(reply, wire.HelloReply)
                self.partners.pin(node, reply.domain, self._messenger.connected())
                if self._again[node]:
                    LOG.warning("hello: %s takes part after all (returned)", reply.domain)
            except AdmissionRefused as error:
                dropped.append((self._name(node), error.code if isinstance(error, Inadmissible) else "domain"))
                LOG.warning("hello: %s is left out (%s)", *dropped[-1])
                self._leave_out(node, dropped[-1][1])
        return dropped

    # --- the interest space ----------------------------------------------------------------------------------------------------

    def _found(self, start: Checkpoint | None) -> Checkpoint:
        """Checkpoint 0: the interest space, the descriptors and the initial layer."""
        from shared.transfer_layer import initial_arrays

        model = self.config.model
        if start is not None:
            space, layer = start.space, initial_arrays(model, start.config.seed)
        else:
            moments = self._query(wire.MOMENTS, wire.MomentsQuery(run_id=self._run_id))
            found = {domain: r for domain, r in moments.items() if isinstance(r, wire.MomentsReply)}
            for domain in self.partners.other_catalogues({name: r.catalogue_hash for name, r in found.items()}):
                LOG.warning("moments: the catalogue of %s is not the one that it enrolled with (catalogue-changed)", domain)
            space = InterestSpace.from_moments([Moments(r.count, r.total, r.outer) for r in found.values()], model.dimension)
            centroids = self._query(wire.CENTROIDS, wire.CentroidsQuery(mean=space.mean, basis=space.basis, scale=space.scale))
            rows = [r.centroids for r in centroids.values() if isinstance(r, wire.CentroidsReply)]
            space, layer = space.with_prototypes(rows, model.prototypes, self.config.seed), initial_arrays(model, self.config.seed)
        descriptors = self._hand_out(space)
        return Checkpoint(run_id=self._run_id, round=0, config=self.config, space=space, layer=layer, descriptors=descriptors)

    def _hand_out(self, space: InterestSpace, nodes: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Gives clients the complete space; those who do not decline answer their domain's descriptor."""
        query = wire.DescriptorQuery(mean=space.mean, basis=space.basis, scale=space.scale, prototypes=space.prototypes)
        replies = self._query(wire.DESCRIPTOR, query, nodes)
        return {domain: r.descriptor for domain, r in replies.items() if isinstance(r, wire.DescriptorReply)}

    def _query(self, kind: str, query: wire.Record, nodes: Sequence[int] | None = None) -> dict[str, wire.Reply]:
        """Asks every client, or only some. Who fails is left out of the run. Returns domain -> reply, sorted by domain."""
        content = query.pack()
        asked = [node for node in self.partners.nodes if nodes is None or node in nodes]
        good: dict[str, wire.Reply] = {}
        dropped: list[tuple[str, str]] = []
        for node, reply in self._persist(kind, dict.fromkeys(asked, content)).items():
            if isinstance(reply, Inadmissible):
                dropped.append((self._name(node), reply.code))
                LOG.warning("%s: %s is left out of the run (%s)", kind, *dropped[-1])
                self._leave_out(node, reply.code)
            else:
                good[self._name(node)] = reply
        if nodes is None:
            self._enough(kind, dropped)
            self.progress(kind.removeprefix("query."), len(good), len(asked))
        return dict(sorted(good.items()))

    # --- rounds ----------------------------------------------------------------------------------------------------------------

    def _rounds(self, checkpoint: Checkpoint, checkpoints: Checkpoints, kept: ReceiptsFile) -> Checkpoint:
        strategy = make_strategy(self.config.aggregation)
        restore_strategy(strategy, checkpoint.strategy, checkpoint.layer)
        log = RoundLog(self.folder / "rounds.jsonl")
        rounds = self.config.privacy.rounds
        for number in range(checkpoint.round + 1, rounds + 1):
            started = time.perf_counter()
            updates, refused, attempts = self._collect(number, checkpoint)
            layer = average(strategy, number, checkpoint.layer, list(updates.values()))
            fresh = {domain: update.receipt for domain, update in updates.items()}
            receipts = checkpoint.receipts | fresh
            self.partners.receipts |= fresh
            checkpoint = Checkpoint(
                run_id=self._run_id,
                round=number,
                config=self.config,
                space=checkpoint.space,
                layer=layer,
                descriptors=checkpoint.descriptors,
                strategy=strategy_state(strategy),
                receipts=receipts,
            )
            log.append(
                RoundReport(
                    round=number,
                    seconds=time.perf_counter() - started,
                    replies=tuple(sorted(updates)),
                    refused=tuple(refused),
                    attempts=attempts,
                    epsilon={domain: receipt.epsilon_spent for domain, receipt in receipts.items()},
                    traffic=self._note_traffic(),
                )
            )
            checkpoints.save(checkpoint)
            kept.keep(self.partners.receipts)
            self.progress("train", number, rounds)
        return checkpoint

    def _collect(self, number: int, checkpoint: Checkpoint) -> tuple[dict[str, TransferUpdate], list[tuple[str, str]], int]:
        """Replies of one round that count, those that do not, and the number of attempts."""
        good: dict[str, TransferUpdate] = {}
        refused: list[tuple[str, str]] = []
        least = self.config.aggregation.min_clients
        attempt = away = 0  # a question that nobody was there to hear is another one: nodes that come back have been waited for
        while attempt - away < ATTEMPTS:
            attempt += 1
            self._welcome_newcomers(checkpoint.space, wait=attempt > 1)
            missing = [node for node in self.partners.nodes if self._name(node) not in good]
            instructions = {node: self._instruction(number, checkpoint, self._name(node)).pack() for node in missing}
            replies = self._messenger.ask(wire.TRAIN, instructions, str(number))
            for node in missing:
                try:
                    good[self._name(node)] = self._admit(replies.get(node), number)
                except Inadmissible as error:
                    refused.append((self._name(node), error.code))
                    LOG.warning("round %d: reply of %s is dropped (%s)", number, self._name(node), error.what)
                    if error.code.startswith("refused-"):
                        self.partners.drop(node)  # a refusal is a decision: asking again would only be refused again
            if len(good) >= least:
                return dict(sorted(good.items())), refused, attempt
            away += away < ATTEMPTS and not set(missing).intersection(self._messenger.connected())
        raise too_few(f"round {number}", len(good), least, [one for one in refused if one[0] not in good])

    def _instruction(self, number: int, checkpoint: Checkpoint, domain: str) -> wire.RoundInstruction:
        last = self.partners.receipts.get(domain)
        told = "" if last is None else last.to_json()
        return wire.RoundInstruction(
            run_id=self._run_id, round=number, config_hash=self.config.config_hash, arrays=checkpoint.layer, last_receipt=told
        )

    def _admit(self, reply: Message | None, number: int) -> TransferUpdate:
        if reply is None:
            raise Inadmissible(NO_REPLY)
        return self._admission.admit(reply, number)

    def _welcome_newcomers(self, space: InterestSpace, *, wait: bool) -> None:
        """Greets nodes that connected since, for example a client that was restarted, and gives them the space."""
        least, patience = self.config.aggregation.min_clients, self.config.aggregation.wait_s
        nodes = self._messenger.wait_for_nodes(least, patience) if wait else self._messenger.connected()
        if new := [node for node in nodes if node not in self._met]:
            self._greet(new)
            self._hand_out(space, new)

    def _leave_out(self, node: int, code: str) -> None:
        """Goes on without a node. One that only failed, for example because it was starting again, is a newcomer before a later round."""
        self.partners.drop(node)
        if code in PASSING and self._again[node] < CHANCES:
            self._again[node] += 1
            self._met.discard(node)

    # --- the end ---------------------------------------------------------------------------------------------------------------

    def _deliver(self, checkpoint: Checkpoint) -> Outcome:
        """Sends the final layer. Who does not confirm it is named; the run has ended well all the same."""
        content = wire.Deliver(run_id=self._run_id, round=checkpoint.round, arrays=checkpoint.layer).pack()
        domains = self.partners.domains
        replies = self._persist(wire.DELIVER, dict.fromkeys(self.partners.nodes, content))
        failed = tuple((self._name(node), reply.code) for node, reply in replies.items() if isinstance(reply, Inadmissible))
        for domain, code in failed:
            LOG.warning("deliver: %s did not confirm the final layer (%s)", domain, code)
        self._note_traffic()
        outcome = Outcome(
            run_id=self._run_id,
            round=checkpoint.round,
            space=checkpoint.space,
            layer=checkpoint.layer,
            domains=tuple(domains),
            receipts=checkpoint.receipts,
            not_delivered=failed,
            traffic=dict(self._traffic),
        )
        replace_file(self.folder / "federation.json", (json.dumps(outcome.to_json(), indent=1) + "\n").encode())
        self.progress("deliver", len(domains) - len(failed), len(domains))
        return outcome

    # --- asking ----------------------------------------------------------------------------------------------------------------

    def _persist(self, kind: str, questions: Mapping[int, RecordDict]) -> dict[int, wire.Reply | Inadmissible]:
        """Asks each node, and those whose failure may pass up to `QUERY_ATTEMPTS` times. Returns an answer for every node."""
        answers: dict[int, wire.Reply | Inadmissible] = {}
        asked = dict(questions)
        for _ in range(QUERY_ATTEMPTS):
            replies = self._messenger.ask(kind, asked, "0")
            answers |= {node: self._read(kind, replies.get(node)) for node in asked}
            asked = {node: content for node, content in asked.items() if getattr(answers[node], "code", "") in PASSING}
            if not asked:
                break
        return answers

    def _read(self, kind: str, reply: Message | None) -> wire.Reply | Inadmissible:
        if reply is None:
            return Inadmissible(NO_REPLY)
        try:
            return self._admission.read(kind, reply)
        except Inadmissible as error:
            return error

    def _enough(self, stage: str, dropped: Sequence[tuple[str, str]]) -> None:
        least, got = self.config.aggregation.min_clients, len(self.partners.nodes)
        if got < least:
            raise too_few(stage, got, least, dropped)

    def _name(self, node: int) -> str:
        return self.partners.domain_of(node) or self.partners.registered_as(node) or "unknown"

    def _note_traffic(self) -> dict[str, Traffic]:
        """Bytes by domain since the last call; adds them to the total."""
        period: dict[str, Traffic] = {}
        for node, traffic in self._messenger.take_traffic().items():
            period[self._name(node)] = period.get(self._name(node), Traffic()) + traffic
        for domain, traffic in period.items():
            self._traffic[domain] = self._traffic.get(domain, Traffic()) + traffic
        return period
