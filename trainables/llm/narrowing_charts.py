"""The pictures of one narrowing trial (arXiv:2505.15811, Figs 5, 12 and 13)."""

from collections.abc import Sequence

from trainables.charts import PALETTE, Chart, Panel, Series
from trainables.llm.narrowing_config import NarrowingConfig

_MOST_TICKS = 16


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
    return Chart(name="losses", title=_title(config), panels=(panel,))


def draw_neurons(config: NarrowingConfig, neurons: Sequence[int]) -> Chart:
    """How many neurons each block has.

    Args:
        neurons: of the blocks, from the first.
    """
    blocks = tuple(float(block) for block in range(len(neurons)))
    series = Series(label="neurons", x=blocks, y=tuple(map(float, neurons)), color=PALETTE[0])
    every = max(1, -(-len(neurons) // _MOST_TICKS))
    ticks = tuple((block, f"{block:.0f}") for block in blocks[::every])
    panel = Panel(title="", x_label="block, from the first", y_label="neurons kept", series=(series,), x_ticks=ticks)
    return Chart(name="neurons", title=_title(config), panels=(panel,))


def _title(config: NarrowingConfig) -> str:
    gone = f"{config.neuron_sparsity:.0%} of the neurons, {config.residual_sparsity:.0%} of the dimensions"
    return f"{config.method.replace('_', ' ')}: {gone} {'removed' if config.prunes else 'fewer from the start'}"
