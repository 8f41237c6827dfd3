// Explains the score of a window: the cosines of words and frames as a heat map, with the weights of both.

import { clock, element, request, span } from "./api.js";

const part = (name) => document.getElementById(`why${name}`);

/** Opens the explanation of a result. */
export async function openWhy(query, result) {
  const found = await request(`/api/explanation/${result.index}/${result.window}`, { query });
  part("-what").replaceChildren(
    element("bdi", { lang: "", dir: "auto" }, query), ` · ${result.video_id} · ${span(result)} · score ${found.similarity.toFixed(3)}`);
  part("-sentence").textContent = found.sentence;
  part("-note").textContent = found.note ?? "";
  part("-table").replaceChildren(found.cosines ? heatMap(found) : pictures(found));
  part("").showModal();
}

function heatMap({ words, cosines, word_weights: ofWords, frame_weights: ofFrames, frames }) {
  const all = cosines.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const table = element("table", { className: "heat" },
    element("caption", { className: "note" }, "Cosine of each word (row) with each frame (column); outlined: the best frame of each word"));
  const head = element("tr", {}, element("td"), ...cosines[0].map((_, column) => frameHead(frames?.[column], column)));
  if (ofWords) head.append(element("th", { scope: "col" }, "weight"));
  const body = words.map((word, row) => {
    const best = Math.max(...cosines[row]);
    const cells = cosines[row].map((cosine) => cell(cosine, low, high, cosine === best));
    const line = element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, word)), ...cells);
    if (ofWords) line.append(weight(ofWords[row], ofWords));
    return line;
  });
  if (ofFrames) {
    const cells = ofFrames.map((value) => weight(value, ofFrames));
    body.push(element("tr", {}, element("th", { scope: "row" }, "weight"), ...cells));
  }
  table.append(element("thead", {}, head), element("tbody", {}, ...body));
  return table;
}

function frameHead(frame, column) {
  const head = element("th", { scope: "col" });
  if (frame) head.append(element("img", { src: frame.picture, alt: `Frame ${column + 1}` }), clock(frame.time_s));
  else head.append(`frame ${column + 1}`);
  return head;
}

function cell(cosine, low, high, best) {
  const share = (cosine - low) / (high - low || 1);
  const made = element("td", { className: best ? "best" : "" }, cosine.toFixed(2));
  made.style.background = `hsl(215 75% ${96 - 66 * share}%)`;
  made.style.color = share > 0.5 ? "#fff" : "#111";
  return made;
}

function weight(value, values) {
  const bar = element("span", { className: "bar" });
  bar.style.width = `${(3.4 * value) / Math.max(...values)}rem`;
  return element("td", { className: "weight" }, bar, ` ${value.toFixed(2)}`);
}

function pictures({ frames }) {
  const heads = (frames ?? []).map(frameHead);
  return element("table", { className: "heat" }, element("thead", {}, element("tr", {}, ...heads)));
}
