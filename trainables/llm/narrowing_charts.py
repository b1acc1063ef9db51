"""The picture of one narrowing trial (arXiv:2505.15811, Figs 5, 12 and 13)."""

from collections.abc import Sequence

from trainables.charts import PALETTE, Chart, Panel, Series
from trainables.llm.narrowing_config import NarrowingConfig


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
            color=PALETTE[column % len(PALETTE)],
            dashed=domain != config.kept_domain,
        )
        for column, domain in enumerate(domains)
    )
    panel = Panel(
        title="", x_label="tokens spent (scores, lasso, recovery)", y_label="held-out loss (nats a token)", series=series
    )
    gone = 1 - config.narrow_width / config.base.width
    title = f"{config.method.replace('_', ' ')}: {config.neuron_sparsity:.0%} of the neurons, {gone:.0%} of the dimensions "
    title += "removed" if config.prunes else "fewer from the start"
    return Chart(name="losses", title=title, panels=(panel,))
