// The scores of a whole video over time, and its best moments.

import { clock, element, request, span } from "./api.js";
import { play, stop } from "./player.js";

const part = (name) => document.getElementById(`film${name}`);

/** Opens the scores of the video that a result is from. */
export async function openFilm(query, result) {
  const { windows, best } = await request(`/api/moments/${result.index}/${result.window}`, { query });
  const dialog = part("");
  part("-title").textContent = result.video_id;
  const bars = new Map(windows.map((moment) => [moment.window, bar(moment, windows, best)]));
  const start = (window) => {
    const moment = windows.find((other) => other.window === window);
    for (const [number, made] of bars) made.classList.toggle("now", number === window);
    play(part("-player"), { ...result, ...moment }, { controls: true });
  };
  for (const [window, made] of bars) made.addEventListener("click", () => start(window));
  part("-line").replaceChildren(...bars.values());
  const end = windows.at(-1).video_s ?? windows.at(-1).end_s;
  part("-start").textContent = clock(0);
  part("-end").textContent = end === null ? "" : clock(end);
  part("-note").textContent = windows.length > 1
    ? "Each bar is a window. Its height is the score, from the lowest to the highest of this film."
    : "This film has one window, so there is no score over time.";
  part("-best").replaceChildren(...best.map((window) => row(windows.find((moment) => moment.window === window), start)));
  dialog.showModal();
  start(result.window);
  bars.get(result.window).focus();
}

function bar(moment, windows, best) {
  const scores = windows.map(({ score }) => score);
  const low = Math.min(...scores);
  const share = (moment.score - low) / (Math.max(...scores) - low || 1);
  const made = element("button", { type: "button", title: `${span(moment)}: ${moment.score.toFixed(3)}` });
  made.setAttribute("aria-label", `${span(moment)}, score ${moment.score.toFixed(3)}`);
  made.style.height = `${windows.length > 1 ? 6 + 94 * share : 100}%`;
  made.classList.toggle("best", best.includes(moment.window));
  return made;
}

function row(moment, start) {
  const made = element("button", { type: "button" }, span(moment));
  made.addEventListener("click", () => start(moment.window));
  return element("li", {}, made, ` ${moment.score.toFixed(3)}`);
}

part("").addEventListener("close", stop);
