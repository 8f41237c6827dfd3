// Plays a window in a loop. If the browser cannot play the file, it plays a preview; if there is none, it shows the reason.

import { element, films, sentence } from "./api.js";

let playing = null;

/** Stops the window that plays. */
export function stop() {
  playing?.parentElement.querySelector(".trouble")?.remove();
  playing?.remove();
  playing = null;
}

export const plays = (screen) => playing !== null && playing.parentElement === screen;

/** Plays a window in an element, in place of what plays now. */
export function play(screen, result, { controls = false } = {}) {
  stop();
  screen.querySelector(".trouble")?.remove();
  const { video: address, preview } = films(result.index, result.window);
  const start = result.start_s ?? 0;
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, controls, tabIndex: controls ? 0 : -1 });
  video.setAttribute("aria-label", `${result.video_id}, playing`);
  const loop = { start, end: result.end_s ?? Infinity };
  let fell = false;
  const fall = () => {
    if (fell) return explain(screen, video, preview);
    fell = true;
    tell(screen, "Making a preview …");
    Object.assign(loop, { start: 0, end: Infinity }); // a preview has the span alone
    video.src = preview;
    return start_(video);
  };
  video.addEventListener("error", fall);
  video.addEventListener("playing", () => screen.querySelector(".trouble")?.remove());
  video.addEventListener("loadedmetadata", () => {
    if (video.videoWidth === 0) fall(); // the browser plays the sound alone
    else if (video.currentTime < loop.start) video.currentTime = loop.start;
  });
  video.addEventListener("timeupdate", () => {
    if (video.currentTime >= loop.end) video.currentTime = loop.start;
  });
  video.addEventListener("ended", () => {
    video.currentTime = loop.start;
    start_(video);
  });
  video.src = `${address}#t=${start}`; // without the end, at which browsers would pause
  screen.append(video);
  playing = video;
  start_(video);
  return video;
}

function start_(video) {
  // A new source or the removal of the element interrupts it, and errors have their own event.
  video.play().catch((error) => {
    if (!["AbortError", "NotSupportedError"].includes(error.name)) console.warn(`cannot play: ${error.message}`);
  });
}

async function explain(screen, video, preview) {
  if (playing === video) stop();
  let reason = "This browser cannot play the video.";
  try {
    const response = await fetch(preview);
    if (!response.ok) reason = await sentence(response);
  } catch {
    reason = "The server does not answer: is waver serve still running?";
  }
  tell(screen, reason);
}

function tell(screen, text) {
  screen.querySelector(".trouble")?.remove();
  screen.append(element("p", { className: "trouble" }, text));
}
