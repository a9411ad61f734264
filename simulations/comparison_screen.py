"""A comparison in a terminal: who was chosen, what it brings in each direction, whether training together pays."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .comparison import Comparison
from .comparison_markdown import by_direction, choice_words, federation_rows, findings, general_caption, utility_rows
from .run_slots import epsilon_name
from .tables import difference_table, method_table


def show(comparison: Comparison, screen: Console) -> None:
    """Prints everything that matters, the whole figures only where there is one variant."""
    if len(comparison.variants) == 1:
        for result in comparison.results:
            name = f"{result.title}, epsilon {epsilon_name(result.epsilon)}, {result.n_seeds} seeds"
            screen.print()
            screen.print(method_table(name, result.methods, n_users=result.n_users))
            if result.differences.get("hr@10"):
                screen.print(difference_table(result))
    else:
        groups = [("mean over directions", list(comparison.overall))] if len(by_direction(comparison)) > 1 else []
        for title, results in [*groups, *by_direction(comparison), *by_direction(comparison, warm=True)]:
            epsilons = sorted({r.epsilon for r in results}, reverse=True)
            head = [f"HR@10, {title}", *(f"epsilon {epsilon_name(epsilon)}" for epsilon in epsilons)]
            screen.print()
            screen.print(_table(head, [[name.strip("*"), *cells] for name, cells in utility_rows(comparison, results)]))
    rows = federation_rows(comparison)
    if rows:
        screen.print()
        screen.print(_table(["federated minus target-only", "epsilon", "direction", "mean", "95 % interval", "verdict"], rows))
    screen.print()
    for choice in comparison.choices:
        screen.print(f"chosen on validation people, {choice_words(comparison, choice).replace('**', '')}", highlight=False, markup=False)
    for found in findings(comparison):
        screen.print(f"{found.title}: {found.verdict}: {' '.join(found.sentences)}", highlight=False, markup=False)
    screen.print()
    screen.print(general_caption(comparison), style="dim", highlight=False, markup=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(padding=(0, 1, 0, 0), box=None)
    for number, title in enumerate(head):
        table.add_column(title, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
