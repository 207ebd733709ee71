"""Which attacks a job gets: its suite, and what is added by looking at the network."""

from __future__ import annotations

from dataclasses import replace

from advcli.attacks import Apgd, Fab, Square
from advcli.evaluation.adaptive import gate_entries, joint_entries, random_entries, substitute_entries
from advcli.evaluation.entries import Entry
from advcli.evaluation.inspection import Traits
from advcli.evaluation.job import Job
from advcli.evaluation.suites import from_sources, suite
from advcli.runs.checkpoint import Loaded


def compose(job: Job, traits: Traits) -> tuple[Entry, ...]:
    """The suite, with the joint loss of auxiliary heads, and in `adaptive` and `full` attacks that know what the network hides.

    What is judged through gates, or goes through operations that block the gradient, may jump, what draws is never the same, and
    probabilities hardly move until they are about to flip: there no attack leaves out what it foresees to come to nothing.
    """
    entries = _composed(job, traits)
    jumps = traits.operations or traits.random or traits.companions or traits.probabilities
    return tuple(_sparing_nothing(entry) for entry in entries) if jumps or job.gated else entries


def _sparing_nothing(entry: Entry) -> Entry:
    attack = entry.attack
    return replace(entry, attack=replace(attack, spares=False)) if isinstance(attack, (Apgd, Fab, Square)) else entry


def _composed(job: Job, traits: Traits) -> tuple[Entry, ...]:
    entries = suite(job.suite, job.engine).entries(job.threat, job.loaded.architecture.num_classes)
    if job.sources:
        return from_sources(entries, [_label(source) for source in job.sources])
    if job.engine != "native":
        return entries
    if job.head == "final" and job.loaded.network.gate_sites:
        entries += joint_entries(job.suite, job.threat, job.aux_weight)
    if job.suite == "adaptive":  # what knows the network comes first: it leaves the fewest to the others
        return _knowing(job, traits) + entries
    return entries + _knowing(job, traits) if job.suite == "full" else entries


def _knowing(job: Job, traits: Traits) -> tuple[Entry, ...]:
    """Attacks chosen by looking at the network; none for one that hides nothing."""
    network, classes = job.loaded.network, job.loaded.architecture.num_classes
    entries: tuple[Entry, ...] = ()
    if job.head == "final" and network.gated:
        heads, exact = len(network.gate_sites), network.closes_at_features
        entries += gate_entries(job.threat, classes, heads, job.aux_weight, exact=exact)
    if traits.operations or traits.probabilities:
        entries += substitute_entries(job.threat, classes)
    return entries + random_entries(job.threat, classes) if traits.random else entries


def _label(source: Loaded) -> str:
    """A name for a source in tables and ledgers, which does not change when its file is moved."""
    return f"{source.header.get('name', 'source')}-{source.header['tensors_sha256'][:8]}"
