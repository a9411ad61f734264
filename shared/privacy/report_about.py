"""What only people know about a domain: contact, purpose, legal basis, retention. Read from a TOML file, never guessed.

::

    controller = "Corner Bookshop Ltd, 1 Quay Street"
    contact = "privacy@corner-bookshop.example"
    purpose = "better recommendations for readers who also use the film site"

    [domain.books]                       # only for this domain; takes the place of the same key above
    retention = "interactions 24 months"

Every field is optional and is a text. What is missing stands in the report as "not stated".
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FIELDS: Mapping[str, tuple[str, str]] = {
    "controller": ("identity", "who is responsible for the data: organisation and address"),
    "contact": ("identity", "whom to ask about this page"),
    "purpose": ("identity", "what the data are used for"),
    "data_product": ("identity", "what is released, and to whom"),
    "data_domain": ("identity", "which data: kinds of interactions, countries, groups of people"),
    "time_span": ("guarantee", "over which time the interactions of a user reach"),
    "contribution_limit": ("guarantee", "how many items of a user are kept at most, by a public rule"),
    "accounts_per_person": ("guarantee", "how accounts are put together by person, as far as they are"),
    "ceiling_rationale": ("guarantee", "why this ceiling"),
    "delta_rationale": ("guarantee", "why this delta: below one over the number of users, by which public figure"),
    "preprocessing": ("unprotected", "what was done to the data before training, and from what it was decided"),
    "utility": ("utility", "what the federation brought, by which private or public measure"),
    "subgroups": ("utility", "how it differs between groups of people"),
    "legal_basis": ("risk", "for example Art. 6(1)(a) or (f) GDPR"),
    "necessity": ("risk", "necessity and proportionality"),
    "retention": ("risk", "how long interactions, passports, models and this ledger are kept"),
    "dpia_reference": ("risk", "the data protection impact assessment that covers this"),
    "resistance": ("risk", "further evidence of resistance to extraction and membership inference"),
    "rights": ("risk", "how people learn of this, object and ask for erasure"),
}
"""Per field, the section of the report that it stands in and what it answers."""

LONGEST = 4000


def read_about(path: Path | None) -> dict[str, Any]:
    """Reads the file; an empty record where none was given.

    Returns:
        Texts by field, and under "domain" texts by domain and field.

    Raises:
        ConfigError: when the file cannot be read, a field is unknown or is not a text.
    """
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}", do="Name a TOML file with --about, or leave it out."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    domains = values.pop("domain", {})
    if not isinstance(domains, dict) or not all(isinstance(one, dict) for one in domains.values()):
        raise ConfigError(f"{path}: 'domain' is a table of tables", do="Write [domain.NAME] above the fields of one domain.")
    _check(path, values)
    for name, said in domains.items():
        _check(path, said, f"domain.{name}.")
    return {**values, "domain": domains}


def fields_of(about: Mapping[str, Any], domain: str | None, section: str) -> dict[str, str | None]:
    """What was stated in one section, None for what was not; with a domain, its own words go first."""
    own = about.get("domain", {}).get(domain, {}) if domain is not None else {}
    return {name: own.get(name, about.get(name)) for name, (where, _) in FIELDS.items() if where == section}


def unknown_domains(about: Mapping[str, Any], domains: set[str]) -> list[str]:
    """Domains that the file speaks of and the report does not."""
    return sorted(set(about.get("domain", {})) - domains)


def _check(path: Path, said: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in said.items():
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            do = f"Did you mean '{near[0]}'?" if near else f"Known fields: {', '.join(FIELDS)}."
            raise ConfigError(f"{path}: unknown field '{prefix}{name}'", do=do)
        if not isinstance(value, str) or not 0 < len(value.strip()) <= LONGEST:
            raise ConfigError(f"{path}: '{prefix}{name}' is not a text of 1 to {LONGEST} characters", do=FIELDS[name][1] + ".")
