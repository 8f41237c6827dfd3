// The results of one index as cards.

import { element, films, span } from "./api.js";
import { play, plays, stop } from "./player.js";

const HOVER_MS = 150;
const moves = matchMedia("(prefers-reduced-motion: no-preference)");
const hovers = matchMedia("(hover: hover)");

/** Builds the section of an index: its title, notices about the query, and a card for each result. */
export function column(index, about, found, actions, compared) {
  const { nothing_fits: nothing, sentence } = found.doubts;
  const section = element("section", { className: "column" });
  if (compared) section.append(element("h2", {}, `${about.run} `, element("span", { className: "name" }, about.name)));
  const say = (text, className) => section.append(element("p", { className }, text));
  if (found.cut) say(found.cut, "notice");
  if (!found.answers.length) say("No video passes the filters.", "notice");
  if (nothing) say("Probably nothing fits this query.", "notice nothing");
  say(`${sentence[0].toUpperCase()}${sentence.slice(1)}.`, "note doubts");
  const results = found.answers.map((answer) => ({ ...answer, index }));
  section.append(element("ol", { className: "results" }, ...results.map((result) => card(result, actions))));
  section.querySelector("ol").setAttribute("aria-label", `Results of ${about.run}`);
  return section;
}

function card(result, actions) {
  const picture = element("img", { src: films(result.index, result.window).thumbnail, alt: "", loading: "lazy" });
  const screen = element("button", { type: "button", className: "screen", tabIndex: -1 }, picture);
  screen.setAttribute("aria-label", `Play ${result.video_id}, ${span(result)}`);
  const item = element("li", { className: "card", tabIndex: -1 }, screen,
    element("div", { className: "about" },
      element("span", { className: "video", title: result.video_id }, result.video_id),
      element("span", { className: "rank" }, `${result.rank}.`),
      element("span", { className: "score", title: "score" }, result.score.toFixed(3)),
      element("span", { className: "times" }, span(result))));
  item.result = result;
  item.setAttribute("aria-label", `${result.rank}. ${result.video_id}, ${span(result)}, score ${result.score.toFixed(3)}`);
  const button = (text, label, act, className = "") => {
    const made = element("button", { type: "button", className, title: label }, text);
    made.addEventListener("click", () => act(item));
    return made;
  };
  item.append(element("div", { className: "actions" },
    button("Film", "Scores of the whole film over time (t)", actions.film),
    button("Why?", "Why this score? (w)", actions.why),
    button("Good", "Judge as good (g)", (it) => actions.judge(it, "good"), "good"),
    button("Bad", "Judge as bad (b)", (it) => actions.judge(it, "bad"), "bad")));
  show(item, null);
  playOnHover(screen, result);
  screen.addEventListener("click", () => toggle(item));
  return item;
}

/** Starts a card, which then plays until it is stopped; stops it if it was started. */
export function toggle(item) {
  const screen = item.querySelector(".screen");
  if (plays(screen) && screen.pinned) {
    screen.pinned = false;
    stop();
  } else {
    if (!plays(screen)) play(screen, item.result);
    screen.pinned = true;
  }
}

/** Marks the verdict on a card: good, bad or null. */
export function show(item, verdict) {
  for (const name of ["good", "bad"]) {
    item.classList.toggle(name, verdict === name);
    item.querySelector(`.actions .${name}`).setAttribute("aria-pressed", String(verdict === name));
  }
}

function playOnHover(screen, result) {
  let waiting = 0;
  screen.addEventListener("pointerenter", () => {
    if (!moves.matches || !hovers.matches) return;
    waiting = setTimeout(() => {
      if (plays(screen)) return;
      screen.pinned = false;
      play(screen, result);
    }, HOVER_MS);
  });
  screen.addEventListener("pointerleave", () => {
    clearTimeout(waiting);
    if (plays(screen) && !screen.pinned) stop();
  });
}
