"use strict";
// Names, values and errors come from others: they are set as text and never read as HTML.

const POLL_MS = 2000, PAGE = 50, TOKEN = "narrow-study-token";
const $ = id => document.getElementById(id);
const asksToken = document.body.dataset.token === "yes";
const answers = new Map();  // address -> {etag, value}: an answer that is still the same is not sent again
let view = {}, timer = 0, polling = null;

class ApiError extends Error {
  constructor(status, sentence) { super(sentence); this.status = status; }
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = String(text);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const escaped = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");  // plotly reads some tags
const words = name => name.replace(/_/g, " ");

function short(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return value === null ? "-" : typeof value === "object" ? JSON.stringify(value) : String(value);
  const size = Math.abs(value);
  return size >= 1e4 && size < 1e15 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

function say(sentence, isBad = false) {
  $("told").hidden = !sentence;
  $("told").classList.toggle("bad", isBad);
  if ($("told").textContent !== (sentence || "")) $("told").textContent = sentence || "";
}

// ---- The service

async function request(path, options = {}) {
  const headers = {...options.headers}, token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, {...options, headers, cache: "no-store", referrerPolicy: "no-referrer"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service does not answer; this page tries again by itself.");
  }
  if (response.ok || response.status === 304) return response;
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) sessionStorage.removeItem(TOKEN);
  throw new ApiError(response.status, told.error || `The service answered ${response.status}.`);
}

async function get(path, signal) {
  const known = answers.get(path);
  const response = await request(path, {signal, headers: known ? {"If-None-Match": known.etag} : {}});
  if (response.status === 304) return known.value;
  const value = await response.json();
  if (answers.size > 60) answers.delete(answers.keys().next().value);
  answers.set(path, {etag: response.headers.get("ETag"), value});
  return value;
}

const post = (path, body) =>
  request(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
const api = (name, rest = "") => `/api/v1/studies/${encodeURIComponent(name)}${rest}`;

// ---- What is shown: the address after # names the study

function route() {
  const name = decodeURIComponent(location.hash.slice(1));
  if (name !== view.name) view = {name, offset: 0};
  const needsToken = asksToken && !sessionStorage.getItem(TOKEN);
  $("token-form").hidden = !needsToken;
  $("forget-token").hidden = needsToken || !asksToken;
  $("home").hidden = needsToken || Boolean(name);
  $("study").hidden = true;
  document.title = name ? `${name}: Narrow Study` : "Narrow Study";
  if (needsToken) { polling?.abort(); clearTimeout(timer); $("token").focus(); return; }
  for (const id of ["model", "failures"]) $(id).hidden = true;
  Plotly.purge("front-plot");
  for (const id of ["axis-x", "axis-y", "model-choice"]) $(id).replaceChildren();
  $("trials").tBodies[0].replaceChildren();
  $("log").textContent = "";
  $("log-box").open = false;
  $("trial-state").value = "";
  if (!name) showSpaces();
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  polling?.abort();
  const mine = polling = new AbortController();
  try {
    await (view.name ? showStudy(view, mine.signal) : showStudies(mine.signal));
    if (view.isLost) say("");
    view.isLost = false;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) { say(error.message, true); route(); return; }
    say(error.message, true);
    view.isLost = true;
    if (!(error instanceof ApiError)) console.error(error);
  }
  if (polling === mine) timer = setTimeout(refresh, document.hidden ? 5 * POLL_MS : POLL_MS);
}

// ---- All studies

function counted(study) {
  if (!study.counts) return study.sentence ? "" : study.state === "starting" ? "starting" : "not read yet";
  const counts = Object.entries(study.counts).map(([state, count]) => `${count} ${state}`).join(", ") || "no trials yet";
  return study.num_trials ? `${counts}, of ${study.num_trials} trials` : counts;
}

function badge(state) { return element("span", state, {class: "badge", "data-state": state}); }

function setBar(bar, share) {
  const percent = Math.round(100 * (share || 0));
  bar.setAttribute("aria-valuenow", percent);
  bar.firstElementChild.style.width = `${percent}%`;
}

async function showStudies(signal) {
  const {studies} = await get("/api/v1/studies", signal);
  const list = $("studies"), items = new Map([...list.children].map(item => [item.dataset.name, item]));
  $("no-studies").hidden = studies.length > 0;
  for (const study of studies) {
    const item = items.get(study.study) || list.appendChild(newItem(study.study));
    items.delete(study.study);
    item.querySelector(".badge").replaceWith(badge(study.state));
    item.querySelector(".counts").textContent = [study.space, counted(study), study.sentence].filter(Boolean).join(" · ");
    setBar(item.querySelector(".bar"), study.progress);
  }
  for (const gone of items.values()) gone.remove();
}

function newItem(name) {
  const item = element("li", null, {"data-name": name}), bar = element("div", null, {class: "bar", role: "progressbar",
    "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": `progress of ${name}`});
  bar.append(element("span"));
  item.append(element("a", name, {href: `#${encodeURIComponent(name)}`}), " ", badge(""), element("p", "", {class: "note counts"}), bar);
  return item;
}

async function showSpaces() {
  const select = $("launch").elements.space;
  if (select.options.length) return;
  $("about-space").textContent = "reading the spaces…";
  try {
    const {spaces} = await get("/api/v1/spaces");
    if (select.options.length) return;
    for (const space of spaces) select.append(element("option", space.space));
    select.spaces = new Map(spaces.map(space => [space.space, space]));
    aboutSpace();
  } catch (error) {
    $("about-space").textContent = error.message;
    if ([0, 429, 503].includes(error.status)) setTimeout(() => { if (!view.name) showSpaces(); }, 2 * POLL_MS);
  }
}

function aboutSpace() {
  const space = $("launch").elements.space.spaces?.get($("launch").elements.space.value);
  if (!space) return;
  const goals = Object.entries(space.objectives).map(([metric, goal]) => `${goal} ${words(metric)}`).join(", ");
  $("about-space").textContent = `${space.about} Objectives: ${goals}. Searched: ${Object.keys(space.parameters).map(words).join(", ")}.`;
  $("launch").elements.trials.placeholder = space.num_trials;
}

// ---- One study

async function showStudy(mine, signal) {
  const study = await get(api(mine.name), signal);
  $("study").hidden = false;
  $("study-name").textContent = study.study;
  $("study-state").replaceChildren(badge(study.state), ` ${counted(study)}`);
  if (study.sentence) $("study-state").append(element("span", ` ${study.sentence}`));
  setBar($("study-bar"), study.progress);
  showFacts(study);
  showFailures(study.failures);
  setActions(study);
  setAxes(mine, study);
  await Promise.all([showFront(mine, study, signal), showTrials(mine, study, signal), showLog(mine, signal)]);
}

function showFacts(study) {
  const told = [study.space, study.sampler && `sampler ${study.sampler}`, study.seed && `seed ${study.seed}`,
    study.constraints.length && `constraints ${study.constraints.join(", ")}`,
    study.parents.length && `forked from ${study.parents.map(parent => parent.study).reverse().join(", from ")}`];
  $("study-facts").textContent = told.filter(Boolean).join(" · ");
  if (isLink(study.run_url)) $("study-facts").append(" · ", element("a", "in MLflow", {href: study.run_url, rel: "noreferrer"}));
}

const isLink = url => typeof url === "string" && /^https?:\/\//.test(url);

function setActions(study) {
  const can = {stop: study.state === "running", resume: ["idle", "refused"].includes(study.state) && study.num_trials !== null};
  for (const button of document.querySelectorAll("[data-action]")) button.disabled = !can[button.dataset.action];
  $("extend").querySelector("button").disabled = !can.resume;
  $("extend").elements.trials.min = (study.num_trials || 0) + 1;
  $("extend").elements.trials.placeholder = 2 * (study.num_trials || 1);
}

function showFailures(failures) {
  $("failures").hidden = !failures.length;
  $("failures").querySelector("tbody").replaceChildren(...failures.map(found => {
    const row = element("tr");
    const which = found.trials.slice(0, 12).join(", ") + (found.trials.length > 12 ? ", …" : "");
    row.append(element("td", found.trials.length, {class: "number"}), element("td", found.cause),
      element("td", found.error, {class: "error"}), element("td", which));
    return row;
  }));
}

function setAxes(mine, study) {
  const names = study.metrics.map(metric => metric.metric);
  mine.metrics = new Map(study.metrics.map(metric => [metric.metric, metric]));
  mine.logs = new Set(study.log_scale);
  const [first, second] = study.objectives.map(objective => objective.metric);
  for (const [id, chosen] of [["axis-y", first], ["axis-x", second ?? "trial"]]) {
    const select = $(id), before = select.value;
    const offered = study.objectives.length ? (id === "axis-x" ? [...names, "trial"] : names) : [];
    if ([...select.options].map(option => option.value).join("\n") === offered.join("\n")) continue;
    select.replaceChildren(...offered.map(name => {
      const metric = mine.metrics.get(name);
      return element("option", metric ? `${words(name)} (${metric.goal}${metric.unit && metric.unit !== name ? `, ${metric.unit}` : ""})` : "trial number", {value: name});
    }));
    select.value = offered.includes(before) ? before : chosen;
  }
  mine.searched = study.objectives.map(objective => objective.metric);
}

// ---- The front

function asked(mine) {
  const chosen = [$("axis-y").value, $("axis-x").value].filter(name => name && name !== "trial");
  const isSearched = chosen.every(name => mine.searched.includes(name)) && mine.searched.length > 1 && chosen.length > 1;
  const pairs = isSearched ? [] : [...new Set(chosen)].map(name => `objective=${encodeURIComponent(`${name}:${mine.metrics.get(name).goal}`)}`);
  return pairs.length ? `?${pairs.join("&")}` : "";
}

async function showFront(mine, study, signal) {
  if (!study.objectives.length || !study.counts || !$("axis-y").value) {
    $("front-told").textContent = "There is no front yet.";
    return;
  }
  let front;
  try {
    front = await get(api(mine.name, `/front${asked(mine)}`), signal);
  } catch (error) {
    if (!(error instanceof ApiError) || [0, 401, 429, 503].includes(error.status)) throw error;
    $("front-told").textContent = error.message;
    return;
  }
  const axes = [$("axis-x").value, $("axis-y").value].join();
  if (front === mine.front && axes === mine.axes) return;
  [mine.front, mine.axes] = [front, axes];
  const left = Object.entries(front.left_out).map(([reason, count]) => `${count} ${reason}`).join(", ") || "none";
  $("front-told").textContent = `${front.front.length} models on the front, ${front.num_dominated} beaten; left out: ${left}.`
    + (front.knee === null ? "" : ` The knee, the best compromise, is ${front.knee}.`);
  listModels(mine, front);
  await drawFront(mine);
}

function listModels(mine, front) {
  const select = $("model-choice"), before = select.value;
  const label = row => `${row.label}${row.label === front.knee ? " (knee)" : ""}: ` +
    front.objectives.map(o => `${words(o.metric)} ${short(row.values[o.metric])}`).join(", ");
  const shown = front.front.slice(0, 500);
  select.replaceChildren(element("option", shown.length ? "choose one of the front" : "none on the front yet", {value: ""}),
    ...shown.map(row => element("option", label(row), {value: row.label})));
  if (shown.some(row => row.label === before)) select.value = before;
}

async function drawFront(mine) {
  const {front} = mine, x = $("axis-x").value, y = $("axis-y").value;
  const style = getComputedStyle(document.documentElement), color = name => style.getPropertyValue(name).trim();
  const of = (row, name) => name === "trial" ? Number(row.label.split(".")[0]) : row.values[name];
  const hover = row => `<b>${escaped(row.label)}</b><br>` + [...Object.entries(row.values), ...Object.entries(row.params)].slice(0, 24)
    .map(([name, value]) => `${escaped(words(name))}: ${escaped(String(short(value)).slice(0, 60))}`).join("<br>");
  const trace = (rows, name, marker) => ({x: rows.map(row => of(row, x)), y: rows.map(row => of(row, y)), name, marker,
    text: rows.map(hover), customdata: rows.map(row => row.label), hovertemplate: "%{text}<extra></extra>", type: "scatter", mode: "markers"});
  const knee = front.front.filter(row => row.label === front.knee);
  const data = [
    trace(front.dominated, "beaten", {size: 6, color: color("--soft"), opacity: 0.45}),
    trace(front.front, "front", {size: 10, color: color("--color-0"), line: {width: 1.5, color: color("--ink")}}),
    {...trace(knee, "knee", {size: 18, symbol: "circle-open", color: color("--mark"), line: {width: 3}}), hoverinfo: "skip", hovertemplate: null},
  ];
  const axis = name => {
    const metric = mine.metrics.get(name), unit = metric?.unit && metric.unit !== name ? ` (${metric.unit})` : "";
    const isLog = mine.logs.has(name) && [...front.front, ...front.dominated].every(row => row.values[name] > 0);
    return {title: {text: escaped(metric ? words(name) + unit : "trial number")}, type: isLog ? "log" : "linear",
      gridcolor: color("--line"), linecolor: color("--soft"), showline: true, zeroline: false, ticks: "outside", automargin: true};
  };
  const layout = {xaxis: axis(x), yaxis: axis(y), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: {family: "system-ui, sans-serif", size: 12, color: color("--ink")}, margin: {l: 56, r: 12, t: 8, b: 48}, height: 440,
    legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0}, hoverlabel: {align: "left"}, uirevision: mine.axes};
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;  // a finger scrolls the page
  const plot = $("front-plot");
  await Plotly.react(plot, data, layout, {displayModeBar: false, responsive: true});
  plot.removeAllListeners("plotly_click");
  plot.on("plotly_click", event => {
    const label = event.points[0].customdata;
    if ([...$("model-choice").options].some(option => option.value === label)) $("model-choice").value = label;
    showModel(mine, label);
  });
  plot.dataset.drawn = String(front.front.length);
}

// ---- A model

async function showModel(mine, label) {
  $("model").hidden = !label;
  if (!label) return;
  const [trial, candidate] = label.split(".");
  try {
    const found = await get(api(mine.name, `/trials/${trial}`));
    const row = candidate === undefined ? found : found.candidates.find(one => one.label === label);
    mine.model = {label, url: row?.model_url};
    $("model-name").textContent = `Model ${label}` + (mine.front?.knee === label ? ", the knee" : "");
    const run = $("model-run");
    run.hidden = !isLink(found.run_url);
    if (!run.hidden) run.href = found.run_url;
    $("download").disabled = !row?.model_url;
    fill($("model-values"), row?.metrics || {});
    fill($("model-params"), found.params);
    if (found.failure) fill($("model-values"), {...found.metrics, cause: found.failure.cause, error: found.failure.error});
    $("model-name").focus({preventScroll: true});
  } catch (error) { say(error.message, true); }
}

function fill(list, values) {
  list.replaceChildren(...Object.entries(values).flatMap(([name, value]) => [element("dt", words(name)), element("dd", short(value))]));
}

async function download() {
  const {label, url} = view.model, button = $("download");
  button.disabled = true;
  button.textContent = "Fetching…";
  try {
    const response = await request(url);
    const link = element("a", "", {download: `${view.name}-${label}.zip`, href: URL.createObjectURL(await response.blob())});
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`Model ${label} of ${view.name} is downloaded; check it with: study verify FOLDER`);
  } catch (error) { say(error.message, true); }
  button.disabled = false;
  button.textContent = "Download model";
}

// ---- Trials and log

async function showTrials(mine, study, signal) {
  const state = $("trial-state").value;
  const found = await get(api(mine.name, `/trials?offset=${mine.offset}&limit=${PAGE}${state ? `&state=${state}` : ""}`), signal);
  if (found === mine.trials) return;
  mine.trials = found;
  const last = Math.min(found.total, mine.offset + PAGE);
  $("trials-place").textContent = found.total ? `${mine.offset + 1} to ${last} of ${found.total}` : "none";
  $("trials-before").disabled = mine.offset === 0;
  $("trials-after").disabled = last >= found.total;
  const metrics = study.objectives.map(objective => objective.metric);
  const head = element("tr");
  head.append(...["trial", "state", "progress", ...metrics.map(words), "attempts", "host"].map(name => element("th", name, {scope: "col"})));
  $("trials").tHead.replaceChildren(head);
  $("trials").tBodies[0].replaceChildren(...found.trials.map(trial => trialRow(mine, trial, metrics)));
}

function trialRow(mine, trial, metrics) {
  const row = element("tr"), open = element("button", trial.trial, {type: "button", class: "link", "aria-label": `trial ${trial.trial}`});
  open.addEventListener("click", () => { showModel(mine, String(trial.trial)); $("model").scrollIntoView({block: "nearest"}); });
  const number = element("td"), state = element("td");
  number.append(open);
  state.append(badge(trial.state));
  if (trial.failure) state.append(` ${trial.failure.cause}`);
  const percent = typeof trial.progress === "number" ? `${Math.round(100 * trial.progress)} %` : trial.progress;
  row.append(number, state, element("td", percent, {class: "number"}),
    ...metrics.map(name => element("td", name in trial.metrics ? short(trial.metrics[name]) : "-", {class: "number"})),
    element("td", trial.attempts, {class: "number"}), element("td", trial.host ?? "-"));
  if (trial.failure) row.title = trial.failure.error.slice(0, 500);
  return row;
}

async function showLog(mine, signal) {
  if (!$("log-box").open) return;
  const after = mine.logPlace || 0;
  const piece = await get(api(mine.name, `/log?after=${after}`), signal);
  if (mine.logPlace !== undefined && mine.logPlace !== after) return;  // another poll was quicker
  mine.logPlace = piece.next;
  if (piece.text) $("log").append(piece.text);
  if (!$("log").textContent) $("log").textContent = "Nothing: no driver was started from here.";
}

// ---- What the reader does

async function act(what, path, body, done) {
  try {
    await post(path, body);
    say(done);
    return true;
  } catch (error) {
    say(error.message, true);
    if (error.status === 401) route();
    return false;
  } finally { if (what) what.disabled = false; }
}

async function submit(form, path, body, done) {
  const button = form.querySelector("button");
  button.disabled = true;
  return act(button, path, body, done);
}

$("launch").addEventListener("submit", async event => {
  event.preventDefault();
  const form = event.target, {name, space, trials, seed, sampler, early_stopping} = Object.fromEntries(new FormData(form));
  const body = {name, space, seed: Number(seed), sampler, early_stopping, ...(trials ? {trials: Number(trials)} : {})};
  if (await submit(form, "/api/v1/studies", body, `${name} is launched; its first trials begin in some seconds.`)) location.hash = encodeURIComponent(name);
});
$("extend").addEventListener("submit", async event => {
  event.preventDefault();
  const trials = Number(new FormData(event.target).get("trials"));
  if (await submit(event.target, api(view.name, "/extend"), {trials}, `${view.name} goes on to ${trials} trials.`)) event.target.reset();
  refresh();
});
$("token-form").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  event.target.reset();
  say("");
  route();
});
$("forget-token").addEventListener("click", () => { sessionStorage.removeItem(TOKEN); answers.clear(); say(""); route(); });
for (const button of document.querySelectorAll("[data-action]"))
  button.addEventListener("click", async () => {
    button.disabled = true;
    const done = {stop: "is asked to stop: its trials save their work.", resume: "goes on in some seconds."}[button.dataset.action];
    await act(null, api(view.name, `/${button.dataset.action}`), {}, `${view.name} ${done}`);
    refresh();
  });
for (const id of ["axis-x", "axis-y"]) $(id).addEventListener("change", refresh);
$("model-choice").addEventListener("change", event => showModel(view, event.target.value));
$("download").addEventListener("click", download);
$("trial-state").addEventListener("change", () => { view.offset = 0; refresh(); });
$("trials-before").addEventListener("click", () => { view.offset = Math.max(0, view.offset - PAGE); refresh(); });
$("trials-after").addEventListener("click", () => { view.offset += PAGE; refresh(); });
$("log-box").addEventListener("toggle", () => { if ($("log-box").open) refresh(); });
$("launch").elements.space.addEventListener("change", aboutSpace);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (view.front) drawFront(view); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
addEventListener("hashchange", () => { say(""); route(); });
route();
