"""The picture of one narrowing trial (arXiv:2505.15811, Figs 5, 12 and 13)."""

from collections.abc import Sequence

from trainables.charts import Chart, Panel, Series
from trainables.llm.narrowing_config import NarrowingConfig

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2430")


def draw_losses(config: NarrowingConfig, domains: Sequence[str], history: Sequence[Sequence[float]]) -> Chart:
    """The held-out loss of every domain over the tokens that were spent.

    Args:
        domains: ascending.
        history: rows of tokens and the loss of each domain.
    """
    tokens = tuple(row[0] for row in history)
    series = tuple(
        Series(
            label=f"{domain} (kept)" if domain == config.kept_domain else domain,
            x=tokens,
            y=tuple(row[1 + column] for row in history),
            color=_COLORS[column % len(_COLORS)],
            dashed=domain != config.kept_domain,
        )
        for column, domain in enumerate(domains)
    )
    panel = Panel(
        title="", x_label="tokens spent (scores, lasso, recovery)", y_label="held-out loss (nats a token)", series=series
    )
    title = f"{config.method.replace('_', ' ')}: {config.neuron_sparsity:.0%} of the neurons, "
    title += f"{config.residual_sparsity:.0%} of the dimensions removed" if config.prunes else "as many fewer, untrained"
    return Chart(name="losses", title=title, panels=(panel,))
