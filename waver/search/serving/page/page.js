// The page: reads the query and the filters, shows the results of one index or two, and records verdicts.

import { element, judge, request } from "./api.js";
import { column, show, toggle } from "./cards.js";
import { openFilm } from "./film.js";
import { listen } from "./keyboard.js";
import { stop } from "./player.js";
import { openWhy } from "./why.js";

const STEP = 12;
const MOST = 200;
const part = (name) => document.getElementById(name);
const state = { indexes: [], query: "", top: STEP, running: null };

const actions = {
  film: (item) => attempt(() => openFilm(state.query, item.result)),
  why: (item) => attempt(() => openWhy(state.query, item.result)),
  judge: (item, verdict) => attempt(async () => {
    const pressed = item.querySelector(`.actions .${verdict}`).getAttribute("aria-pressed") === "true";
    mark(await judge(state.query, item.result, pressed ? null : verdict));
  }),
};

async function attempt(act) {
  try {
    await act();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

function say(text, isError = false) {
  part("status").textContent = text;
  part("status").classList.toggle("error", isError);
}

/** Searches with the query and the filters of the form; cancels a search that still runs. */
async function search(top = STEP) {
  const query = part("query").value.trim();
  if (!query) return say("Write a sentence that describes what to find.");
  const filters = {
    folder: part("folder").value, min_s: part("min").value, max_s: part("max").value, overlapping: part("overlapping").checked,
  };
  state.running?.abort();
  const running = state.running = new AbortController();
  say("Searching …");
  await ready;
  history.replaceState(null, "", `?${new URLSearchParams({ query })}`);
  const found = await request("/api/search", { query, top, ...filters }, { signal: running.signal });
  Object.assign(state, { query, top });
  present(found);
}

function present({ columns, verdicts }) {
  const card = document.activeElement.closest?.(".card")?.result;
  stop();
  const compared = columns.length > 1;
  part("columns").classList.toggle("compared", compared);
  part("columns").replaceChildren(
    ...columns.map((found, index) => column(index, state.indexes[index], found, actions, compared)));
  const cards = [...document.querySelectorAll(".card")];
  for (const item of cards.slice(0, 1)) item.tabIndex = 0;
  mark(verdicts);
  const most = Math.max(...columns.map(({ answers }) => answers.length));
  part("more").hidden = most < state.top || state.top >= MOST;
  say(`${cards.length} results`);
  cards.find(({ result }) => card && result.index === card.index && result.window === card.window)?.focus();
}

function mark(verdicts) {
  for (const item of document.querySelectorAll(".card")) show(item, verdicts[item.result.index][item.result.window] ?? null);
}

function focusQuery() {
  part("query").focus();
  part("query").select();
}

/** Takes the token and the query from the address. */
function readAddress() {
  const address = new URLSearchParams(location.search);
  address.delete("token"); // the cookie has it now
  history.replaceState(null, "", address.size ? `?${address}` : location.pathname);
  part("query").value ||= address.get("query") ?? "";
}

/** Reads which indexes and folders there are; the user can write a query meanwhile. */
async function readIndexes() {
  const { indexes, judgements } = await request("/api/indexes");
  state.indexes = indexes;
  document.title = `waver: ${indexes.map(({ run }) => run).join(" | ")}`;
  part("judgements").textContent = judgements;
  const folders = new Set(indexes.flatMap(({ folders }) => folders));
  part("folder").append(...[...folders].sort().map((name) => element("option", { value: name }, name)));
  if (!part("status").textContent)
    say(indexes.map(({ run, num_windows: number }) => `${run}: ${number.toLocaleString("en")} moments`).join(" · "));
}

part("search").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => search());
});
part("filters").addEventListener("change", () => part("query").value.trim() && attempt(() => search()));
part("more").addEventListener("click", () => attempt(() => search(Math.min(state.top + STEP, MOST))));
part("open-help").addEventListener("click", () => part("help").showModal());
document.addEventListener("focusin", ({ target }) => {
  const item = target.closest(".card");
  if (!item) return;
  for (const other of document.querySelectorAll(".card")) other.tabIndex = other === item ? 0 : -1;
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && state.query) // another tab may have judged meanwhile
    attempt(async () => mark(await request("/api/verdicts", { query: state.query })));
});
listen({
  query: focusQuery,
  help: () => part("help").showModal(),
  Enter: toggle,
  t: actions.film,
  w: actions.why,
  g: (item) => actions.judge(item, "good"),
  b: (item) => actions.judge(item, "bad"),
});
readAddress();
const ready = readIndexes();
attempt(() => (part("query").value.trim() ? search() : ready));
