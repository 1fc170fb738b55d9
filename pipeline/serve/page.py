"""The page of the service: drop, paste or choose an image, and see its likeliest classes.

It needs no other file. Its script sends requests to its own service alone, and the policy lets
nothing else run or load. Names of files and of classes reach the page as text only.
"""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2f6fde;
  --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --accent: #7aa7f7; --wrong: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } p { margin: .25rem 0; }
#drop { display: block; margin: 1.2rem 0; padding: 2rem 1rem;
  border: 2px dashed var(--line); border-radius: .6rem;
  background: var(--soft); text-align: center; cursor: pointer; }
#drop.over, #drop:focus-within { border-color: var(--accent); border-style: solid; }
#file { position: absolute; opacity: 0; width: 1px; height: 1px; }
#drop b { color: var(--accent); text-decoration: underline; }
article { display: grid; grid-template-columns: 10rem 1fr; gap: 0 1.2rem;
  align-items: start; padding: 1.2rem 0;
  border-top: 1px solid var(--line); }
article img { width: 10rem; max-height: 14rem; object-fit: contain; background: #fff;
  border-radius: .3rem; }
article > div { grid-column: 2; }
h2 { font-size: 1rem; margin: 0 0 .4rem; font-weight: 600; }
ol { list-style: none; margin: 0; padding: 0; } li { margin: 0 0 .5rem; }
.line { display: flex; justify-content: space-between; gap: 1rem; }
.line span:last-child { font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { height: .5rem; border-radius: .25rem; background: var(--line); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
li:first-child .line { font-weight: 600; } .wrong { color: var(--wrong); }
.small { font-size: .85rem; opacity: .75; }
@media (max-width: 32rem) {
  article { grid-template-columns: 1fr; gap: .8rem; } article > div { grid-column: 1; }
  article img { width: 100%; max-height: 50vh; }
}
"""

_SCRIPT = """
"use strict";
const byId = name => document.getElementById(name);
const makeElement = (tag, text, kind) => {
  const element = document.createElement(tag);
  element.textContent = text ?? "";
  if (kind) element.className = kind;
  return element;
};
const percent = fraction =>
  fraction > 0 && fraction < 0.001 ? "< 0.1 %" : (100 * fraction).toFixed(1) + " %";
const megabytes = bytes => (bytes / 1e6).toFixed(1) + " MB";
let limits = { bytes: Infinity };
let waiting = Promise.resolve();

async function fetchJson(address, request) {
  let response, answer;
  try {
    response = await fetch(address, request);
  } catch {
    throw new Error("The service does not respond; check that it is running, and try again.");
  }
  try {
    answer = await response.json();
  } catch {
    const status = `status ${response.status}`;
    throw new Error(`The service sent an unreadable answer (${status}); try again.`);
  }
  if (!response.ok) {
    throw new Error(answer.error || `The request failed (status ${response.status}); try again.`);
  }
  return answer;
}

async function describe() {
  const model = await fetchJson("model");
  limits = model.limits;
  const version = model.version ? ` ${model.version}` : "";
  document.title = model.name + version;
  byId("title").textContent = "What is in the image?";
  byId("model").textContent =
    `${model.name}${version} (${model.sha256.slice(0, 12)}): ` +
    `${model.class_names.length.toLocaleString("en")} classes, ` +
    `loaded ${model.since.replace("T", " ").slice(0, 16)} UTC.`;
}

function makeBars(guesses) {
  const list = makeElement("ol");
  for (const guess of guesses) {
    const item = makeElement("li"), line = makeElement("div", "", "line");
    const bar = makeElement("div", "", "bar"), filled = makeElement("i");
    line.append(makeElement("span", guess.class), makeElement("span", percent(guess.probability)));
    filled.style.width = `${100 * guess.probability}%`;
    bar.append(filled);
    item.append(line, bar);
    list.append(item);
  }
  return list;
}

async function classify(file, result) {
  try {
    if (file.size > limits.bytes) {
      const sizes = `${megabytes(file.size)}, at most ${megabytes(limits.bytes)} allowed`;
      throw new Error(`The image is too large: ${sizes}.`);
    }
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await fetchJson("predict", { method: "POST", body: file, headers });
    const served = `${answer.model.name} ${answer.model.version}`.trim();
    const model = `${served}, model ${answer.model.sha256.slice(0, 12)}`;
    result.replaceChildren(makeBars(answer.predictions[0].top), makeElement("p", model, "small"));
  } catch (error) {
    result.replaceChildren(makeElement("p", error.message, "wrong"));
  }
}

function show(file) {
  const card = makeElement("article"), image = makeElement("img"), text = makeElement("div");
  const result = makeElement("div", "Classifying ...");
  image.alt = "";
  image.onerror = () => image.remove();
  image.src = URL.createObjectURL(file);
  result.className = "result";
  text.append(makeElement("h2", file.name || "pasted image"), result);
  card.append(image, text);
  byId("results").prepend(card);
  waiting = waiting.then(() => classify(file, result));
}

const showAll = files => [...files].reverse().forEach(show);
byId("file").addEventListener("change", event => {
  showAll(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", event => showAll(event.clipboardData.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") showAll(event.dataTransfer.files);
  });
}
describe().catch(error => {
  byId("model").textContent = error.message;
  byId("model").className = "wrong";
});
"""

PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>alexnet</title><link rel="icon" href="data:,">
<style>{_STYLE}</style></head><body>
<h1 id="title">What is in the image?</h1>
<p id="model" class="small">&nbsp;</p>
<label id="drop">Drop images here, paste one, or <b>choose</b>.
<input id="file" type="file" accept="image/*" multiple></label>
<main id="results" aria-live="polite"></main>
<script>{_SCRIPT}</script>
</body></html>
"""


def _source(text: str) -> str:
    """Return the source expression by which a policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; img-src blob:"
    " data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
