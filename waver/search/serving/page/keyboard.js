// Keys for the whole page; the arrows move to the nearest card in their direction.

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Handles keys. `actions` has a function that takes a card for each of Enter, t, w, g and b, and `help` and `query`. */
export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const field = event.target.closest("input, select, textarea");
    if (field) return leave(field, event);
    if (event.key === "/") done(event, actions.query());
    else if (event.key === "?") done(event, actions.help());
    else if (event.key in STEPS) move(event, STEPS[event.key]);
    else actOn(event, actions);
  });
}

function done(event) {
  event.preventDefault();
}

/** Leaves the query for the first card, with the down arrow. */
function leave(field, event) {
  const first = document.querySelector(".card");
  if (field.id === "query" && event.key === "ArrowDown" && first) done(event, first.focus());
}

function actOn(event, actions) {
  const card = event.target.closest(".card");
  const pressesButton = event.key === "Enter" && event.target.closest("button, summary, a");
  if (card && event.key in actions && !pressesButton) done(event, actions[event.key](card));
}

function move(event, [x, y]) {
  const cards = [...document.querySelectorAll(".card")];
  const here = event.target.closest(".card");
  if (!cards.length) return;
  const next = here ? nearest(here, cards, x, y) : cards[0];
  done(event, next?.focus());
}

function nearest(here, cards, x, y) {
  const from = here.getBoundingClientRect();
  const distance = (card) => {
    const to = card.getBoundingClientRect();
    const [dx, dy] = [to.left - from.left, to.top - from.top];
    const [along, across] = [dx * x + dy * y, Math.abs(dx * y) + Math.abs(dy * x)];
    return along > 1 ? along + 3 * across : Infinity;
  };
  const best = cards.reduce((one, other) => (distance(other) < distance(one) ? other : one), here);
  return distance(best) < Infinity ? best : null;
}
