"""How a study's page looks and answers clicks: its CSS and its script, which need nothing but plotly.js beside them."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #5b6374; --line: #dfe3ea; --paper: #fff;
  --card: #f6f7f9; --mark: #c2185b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ee; --soft: #a0a8b8; --line: #333a48; --paper: #14161b; --card: #1d2027; --mark: #ff6fa5; }
  .plot { filter: invert(0.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1680px; margin: 0 auto; padding: 20px clamp(12px, 3vw, 48px) 60px; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 0.5rem; padding-top: 0.6rem; border-top: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 1.2rem 0 0.3rem; font-size: 1rem; }
p { margin: 0.3rem 0 0.6rem; max-width: 100ch; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0.7rem 0; }
nav a { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.card { padding: 10px 14px; border-radius: 8px; background: var(--card); overflow-wrap: anywhere; }
.card b { display: block; color: var(--soft); font-weight: 600; font-size: 0.82rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 12px; }
.plots > :only-child .plot { max-width: 1150px; }
.scroll { overflow-x: auto; max-width: 100%; min-width: 0; }
.rows { width: fit-content; max-height: 34rem; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px; margin: 0.4rem 0; font-size: 0.85rem; align-items: center; }
.legend span { display: inline-flex; align-items: center; gap: 4px; margin-right: 8px; }
.chip { display: inline-flex; align-items: center; gap: 6px; padding: 2px 10px;
  border: 1px solid var(--line); border-radius: 99px; background: none;
  color: inherit; font: inherit; cursor: pointer; overflow-wrap: anywhere; text-align: left; }
.chip::before { content: ""; flex: none; width: 11px; height: 11px; border-radius: 3px; background: var(--c); }
.chip[aria-pressed="false"] { opacity: 0.45; text-decoration: line-through; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; white-space: nowrap; }
td.wide { white-space: normal; min-width: 16rem; max-width: 60rem; overflow-wrap: anywhere; }
td.number { text-align: right; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--card); }
th button { padding: 0; border: 0; background: none; color: inherit; font: inherit; font-weight: 600; cursor: pointer;
  text-align: left; }
th[aria-sort="ascending"] button::after { content: " ▲"; } th[aria-sort="descending"] button::after { content: " ▼"; }
tr.knee td { font-weight: 600; } tr.knee td:first-child { color: var(--mark); }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr); gap: 3px 16px; margin: 0.4rem 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
select { max-width: 100%; padding: 3px 6px; font: inherit; }
label { margin-right: 14px; }
@media print { .rows { max-height: none; } nav { display: none; } }
"""

SCRIPT = """
"use strict";
const hidden = new Set();
const isTouched = matchMedia("(pointer: coarse)").matches;
const config = {displayModeBar: isTouched ? false : "hover", displaylogo: false, responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d"]};

function drawNext(names) {
  const name = names.shift();
  if (name === undefined) { if (EXPLORE) explore(); document.body.dataset.drawn = "all"; return; }
  const {data, layout} = FIGURES[name];
  if (isTouched) layout.dragmode = false;  // a finger scrolls the page
  Plotly.newPlot(name, data, layout, config).then(() => setTimeout(drawNext, 0, names));
}

function toggle(chip) {
  const group = chip.dataset.group, isShown = hidden.delete(group);
  if (!isShown) hidden.add(group);
  for (const other of document.querySelectorAll(".chip"))
    if (other.dataset.group === group) other.setAttribute("aria-pressed", String(isShown));
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const places = plot.data.map((trace, place) => trace.legendgroup === group ? place : -1).filter(place => place >= 0);
    if (places.length) Plotly.restyle(plot, {visible: isShown}, places);
  }
}

function sortBy(button) {
  const head = button.closest("th"), body = head.closest("table").tBodies[0];
  const isDown = head.getAttribute("aria-sort") === "ascending", place = head.cellIndex;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const compare = (a, b) => {
    const x = Number(key(a)), y = Number(key(b));
    return isNaN(x) || isNaN(y) ? String(key(a)).localeCompare(String(key(b)), undefined, {numeric: true}) : x - y;
  };
  body.append(...[...body.rows].sort((a, b) => (isDown ? -1 : 1) * compare(a, b)));
}

function explore() {
  const [x, y] = ["explore-x", "explore-y"].map(id => document.getElementById(id).value);
  const type = name => EXPLORE.log.includes(name) ? "log" : EXPLORE.texts.includes(name) ? "category" : "linear";
  const axis = name => ({title: {text: EXPLORE.names[name]}, gridcolor: "#e9ebef", linecolor: "#1f2430", showline: true,
    zeroline: false, automargin: true, ticks: "outside", type: type(name)});
  const looks = {dominated: {size: 6, opacity: 0.5}, infeasible: {size: 7, symbol: "x-thin-open"},
    front: {size: 9, line: {width: 1.2, color: "#1f2430"}}};
  const traces = Object.entries(looks).map(([kind, look]) => {
    const places = EXPLORE.kinds.map((own, place) => own === kind ? place : -1).filter(place => place >= 0);
    const pick = column => places.map(place => column[place]);
    return {x: pick(EXPLORE.columns[x]), y: pick(EXPLORE.columns[y]), text: pick(EXPLORE.labels), type: "scatter",
      mode: "markers", hovertemplate: "%{text}<br>%{x}, %{y}<extra></extra>",
      marker: {...look, color: pick(EXPLORE.colors)}};
  });
  const layout = {xaxis: axis(x), yaxis: axis(y), showlegend: false, margin: {l: 62, r: 14, t: 20, b: 52}, paper_bgcolor: "#fff",
    font: {family: "system-ui, sans-serif", size: 12, color: "#1f2430"}};
  if (isTouched) layout.dragmode = false;
  return Plotly.react("plot-explore", traces, layout, config);
}

document.addEventListener("click", event => {
  const chip = event.target.closest(".chip"), sorter = event.target.closest("th button");
  if (chip) toggle(chip); else if (sorter) sortBy(sorter);
});
document.addEventListener("change", event => { if (event.target.id.startsWith("explore-")) explore(); });
drawNext(Object.keys(FIGURES));
"""
