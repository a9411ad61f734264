"""`isthmus-client recommend` and `similar`: lists for the partner's own users, and items like an item.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import UsageError

from .answers import AsJson, Debug, Settings, answer, epilog, libraries_on_stderr, read_settings

if TYPE_CHECKING:
    import polars as pl

    from ..recommender.output import Written
    from ..recommender.recommender import Recommender
    from ..settings import ClientSettings

EPILOG = epilog(0, 1, 2, 3, 4, 6, 9, 12, 17, 130)
MOST_ON_A_SCREEN = 50
"""Users whose lists are printed; more go to a file."""

Engine = Annotated[
    str,
    typer.Option(help="Search: auto (exact up to a million items), exact, faiss (needs the extra 'serve') or int8.", metavar="NAME"),
]
InStock = Annotated[Path | None, typer.Option(help="The only items that may be offered: one id a line, or a table.", metavar="FILE")]
Blocked = Annotated[
    Path | None,
    typer.Option(help="Items that are never offered: one id a line, or a table; with a user column, to that user only.", metavar="FILE"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Users:
    """Whom the lists are for, and what to call the i-th of them in an error."""

    ids: pl.Series
    name_of: Callable[[int], str]


def recommend(
    partner_toml: Settings,
    users: Annotated[
        list[str] | None,
        typer.Option(
            help="A user's id, or a file: one id a line, or a table. May be repeated; everybody when left out.", metavar="FILE|ID"
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Items of a list.", metavar="N")] = 20,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the lists go: .parquet, .csv or .jsonl; the screen when left out.", metavar="FILE"),
    ] = None,
    blocked: Blocked = None,
    in_stock: InStock = None,
    declared: Annotated[
        str | None,
        typer.Option(help="Declared interests: words, or a table with your user column and a column 'text'.", metavar="WORDS|FILE"),
    ] = None,
    diversity: Annotated[float, typer.Option(help="0 = by score alone, 1 = as different as can be.", metavar="0..1")] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, in words: prototypes, and the user's own items here.")] = False,
    with_seen: Annotated[bool, typer.Option("--with-seen", help="Offer what a user had before, too.")] = False,
    even_unknown: Annotated[bool, typer.Option("--even-unknown", help="What is popular to users of whom nothing is known.")] = False,
    engine: Engine = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Recommend items to your own users, with what the last run delivered.

    Who has a history here is read by it; who brought a passport from a partner, by that; who declared interests, by these; everybody else
    gets what is popular, and so does who used words that the text model can only spell, as those of another script. What was observed by a
    running service counts at once. Nothing of it leaves this machine.

    A file is written whole or not at all, readable by you alone: user, rank, item, score, reason, source, uncertainty, model_version.

    \b
    Examples:
      isthmus-client recommend partner.toml --users anna --k 5 --explain
      isthmus-client recommend partner.toml --users users.txt --k 20 --out recs.parquet
      isthmus-client recommend partner.toml --in-stock stock.csv --diversity 0.3 --out recs.parquet
      isthmus-client recommend partner.toml --declared "old maps, polar travel"
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..recommender.output import check_format
        from ..recommender.recommender import Recommender
        from ..recommender.requests import check_length

        if out is not None:
            check_format(out)
        words, table = _declared(settings, declared)
        recommender = Recommender.open(settings, engine=engine, blocked=blocked, in_stock=in_stock)
        _say_unknown(recommender)
        check_length(k, recommender.n_items)
        wanted: dict[str, Any] = {"diversity": diversity, "with_seen": with_seen, "explain": explain}
        if words is not None and not users:
            frame = _somebody(recommender, words, k=k, **wanted)
            written = _kept(out, iter([frame]), [])
            shown = [frame]
        else:
            people = _people(settings, recommender, users or [], table)
            if out is None and len(people.ids) > MOST_ON_A_SCREEN:
                what = f"lists for {len(people.ids):,} users are too many for a screen"
                raise UsageError(what, do="Name a file with --out, or fewer users with --users.")
            asked = table if words is None else dict.fromkeys(people.ids.to_list(), words)
            frames = recommender.batch(
                people.ids, k, declared=asked, even_unknown=even_unknown, name_of=people.name_of, progress=_progress(), **wanted
            )
            shown = []
            written = _kept(out, frames, shown)
    answer(as_json, _document(settings, recommender, out, written, shown), _words(recommender, out, written, shown))


def similar(
    partner_toml: Settings,
    item: Annotated[str, typer.Argument(help="Your own id of an item.", metavar="ITEM")],
    k: Annotated[int, typer.Option("--k", help="Items to show.", metavar="N")] = 10,
    in_stock: InStock = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the items most like one, by their texts.

    \b
    Example:
      isthmus-client similar partner.toml B00004TQXJ --k 5
    """
    del debug
    settings = read_settings(partner_toml)
    with libraries_on_stderr():
        from ..recommender.recommender import Recommender

        recommender = Recommender.open(settings, in_stock=in_stock)
        found = recommender.similar(item, k)
    document = {
        "domain": settings.domain,
        "item": item,
        "similar": [{"item": one.item, "title": one.title, "cosine": round(one.cosine, 6)} for one in found],
    }
    width = max((len(one.item) for one in found), default=0)
    lines = [f"{one.cosine:6.3f}  {one.item:<{width}}  {one.title}" for one in found]
    answer(as_json, document, "\n".join(lines) or "no other item may be offered")


def _declared(settings: ClientSettings, declared: str | None) -> tuple[str | None, dict[str, str] | None]:
    """Words, or what a table says of each user."""
    from ..data.tables import Column, read_table
    from ..recommender.filters import is_table
    from ..recommender.requests import check_declared

    if declared is None:
        return None, None
    path = Path(declared)
    if not is_table(path):
        if os.path.isfile(declared):  # or the name of a file would be read as somebody's wish
            what = f"{path} is a file, but no table of declared interests"
            raise UsageError(
                what, do=f"Give words, or a .csv, .parquet or .jsonl with the columns '{settings.data.user_column}' and 'text'."
            )
        return check_declared(declared), None
    if not os.path.isfile(declared):  # unlike a Path it takes words of any length
        raise UsageError("--declared: there is no file of this name", do="Check the path.")
    columns = [Column(role="user", name=settings.data.user_column), Column(role="text", name="text")]
    frame = read_table(path, columns, lambda rows: rows).drop_nulls()
    if frame.is_empty():
        raise UsageError(f"{path} says nothing of anybody", do=f"Give it the columns '{settings.data.user_column}' and 'text'.")
    return None, dict(frame.unique("user", keep="last", maintain_order=True).iter_rows())


def _people(settings: ClientSettings, recommender: Recommender, named: list[str], table: dict[str, str] | None) -> _Users:
    import polars as pl

    if not named:
        ids = pl.Series("user", list(table), dtype=pl.String) if table is not None else recommender.all_users().alias("user")
        return _Users(ids=ids, name_of=lambda at: f"user {at + 1:,} of {len(ids):,}")
    found: list[pl.DataFrame] = [_named(settings, value, at, len(named)) for at, value in enumerate(named, start=1)]
    frame = pl.concat(found).unique("user", keep="first", maintain_order=True)
    return _Users(ids=frame["user"], name_of=lambda at: str(frame["called"][at]))


def _named(settings: ClientSettings, value: str, at: int, of: int) -> pl.DataFrame:
    """Users of one ``--users``, and what to call each instead of its id."""
    import polars as pl

    from ..data.tables import Column, read_table
    from ..recommender.filters import is_table, read_ids

    path, schema = Path(value), {"user": pl.String, "called": pl.String}
    there = os.path.isfile(value)  # unlike a Path it takes ids of any length
    if is_table(path) and there:
        frame = read_table(path, [Column(role="user", name=settings.data.user_column)], lambda rows: rows).with_row_index("row", offset=1)
        frame = frame.drop_nulls()
        if frame.is_empty():
            raise UsageError(f"{path} names nobody", do=f"Give it the column '{settings.data.user_column}' and at least one row.")
        return frame.select("user", called=pl.format(f"the user in row {{}} of {path}", "row"))
    if there or is_table(path) or path.suffix == ".txt":
        lines = read_ids(path)
        called = [f"the user in line {number:,} of {path}" for number, _ in lines]
        return pl.DataFrame({"user": [name for _, name in lines], "called": called}, schema=schema)
    if os.path.isdir(value):
        raise UsageError(f"--users {at} of {of} is a folder", do="Name a user, or a file of users.")
    if not value.strip():
        raise UsageError(f"user {at} of {of} is empty", do="Name a user, or a file of users.")
    return pl.DataFrame({"user": [value.strip()], "called": [f"user {at} of {of}"]}, schema=schema)


def _somebody(recommender: Recommender, words: str, *, k: int, **wanted: Any) -> pl.DataFrame:
    """A list for somebody without an account, by what they say."""
    import polars as pl

    from ..recommender.batches import SCHEMA
    from ..recommender.requests import Request

    (one,) = recommender.recommend([Request(declared=words, k=k, **wanted)])
    if one.source == "popularity":
        print("these words say nothing to the text model (another script?): the list is of what is popular", file=sys.stderr)
    said = {"user": "", "source": one.source, "uncertainty": one.uncertainty, "model_version": one.model_version}
    rows = [{**said, "rank": rank, "item": i.item, "score": i.score, "reason": i.reason} for rank, i in enumerate(one.items, start=1)]
    return pl.DataFrame(rows, schema=SCHEMA)


def _kept(out: Path | None, frames: Any, shown: list[pl.DataFrame]) -> Written:
    """Writes the lists, or keeps them to be shown."""
    from ..recommender.output import Written, write

    if out is not None:
        return write(out, frames)
    written = Written()
    shown += [written.count(frame) for frame in frames]
    return written


def _say_unknown(recommender: Recommender) -> None:
    if unknown := recommender.filters.unknown:
        rows = "1 row of the lists names an item" if unknown == 1 else f"{unknown:,} rows of the lists name items"
        print(f"{rows} that the catalogue lacks: no effect", file=sys.stderr)


def _progress() -> Callable[[int, int], None] | None:
    """A line that counts the users, where somebody watches."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(f"\rrecommending: {done:,} of {total:,} users", end="\n" if done >= total else "", file=sys.stderr)


def _document(
    settings: ClientSettings, recommender: Recommender, out: Path | None, written: Written, shown: list[pl.DataFrame]
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "domain": settings.domain,
        "model_version": recommender.model_version,
        "users": written.users,
        "recommendations": written.rows,
        "sources": written.sources,
    }
    if out is not None:
        return {**said, "file": str(out)}
    lists = [
        {
            "user": user or None,
            "source": rows["source"][0],
            "uncertainty": round(rows["uncertainty"][0], 6),
            "items": [
                {"rank": rank, "item": item, "score": round(score, 6), "reason": reason}
                for rank, item, score, reason in rows.select("rank", "item", "score", "reason").iter_rows()
            ],
        }
        for frame in shown
        for (user,), rows in frame.group_by("user", maintain_order=True)
    ]
    return {**said, "lists": lists}


def _words(recommender: Recommender, out: Path | None, written: Written, shown: list[pl.DataFrame]) -> str:
    by_source = ", ".join(f"{count:,} by {source}" for source, count in sorted(written.sources.items(), key=lambda each: -each[1]))
    people = "1 user" if written.users == 1 else f"{written.users:,} users"
    total = f"{written.rows:,} recommendations to {people} ({by_source or 'nobody'}); model {recommender.model_version}"
    if out is not None:
        return f"{total}: {out}"
    lines = []
    for frame in shown:
        for (user,), rows in frame.group_by("user", maintain_order=True):
            width = max(map(len, rows["item"]))
            lines += [f"{user or 'somebody'!s}: {rows['source'][0]}, uncertainty {rows['uncertainty'][0]:.2f}"]
            lines += [
                f"{rank:4}  {item:<{width}}  {score:8.3f}  {reason}"
                for rank, item, score, reason in rows.select("rank", "item", "score", "reason").iter_rows()
            ]
    return "\n".join([*lines, total])
