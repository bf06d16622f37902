"use strict";
// The page of one study. STUDY comes from study.js: id, questions, and items with their two files.
// A step is one question about one pair. Everything a rater gives is kept in localStorage under the
// study's id, one record a rater, and leaves the browser as a file only.

const $ = (id) => document.getElementById(id);
const FORMAT = "emu-jax juice answers 1";
const SHELF = "emu-jax juice " + STUDY.id;
const STEPS = STUDY.items.flatMap((item) => STUDY.questions.map((question) => ({ item, question })));

let rater = "";
let answers = {}; // item id -> question name -> {choice, reasons}
let at = -1; // step shown; -1 = start, STEPS.length = end
let ahead = []; // the next pair, while it loads

// What is kept.

function shelf() {
  try {
    return JSON.parse(localStorage.getItem(SHELF)) || { last: "", raters: {} };
  } catch {
    return { last: "", raters: {} };
  }
}

function keep() {
  const all = shelf();
  all.last = rater;
  all.raters["name " + rater] = { answers, at };
  try {
    localStorage.setItem(SHELF, JSON.stringify(all));
  } catch {
    $("unkept").hidden = false;
  }
}

function take(name) {
  const had = shelf().raters["name " + name];
  rater = name;
  answers = had ? had.answers : {};
  return had ? had.at : 0;
}

function answer(step) {
  const ofItem = (answers[step.item.id] ??= {});
  return (ofItem[step.question.name] ??= { choice: "", reasons: [] });
}

function isWhole(step) {
  const given = answers[step.item.id]?.[step.question.name];
  return Boolean(given && given.choice && given.reasons.length);
}

function save() {
  const whole = {};
  for (const step of STEPS.filter(isWhole)) {
    (whole[step.item.id] ??= {})[step.question.name] = answer(step);
  }
  const text = JSON.stringify({ format: FORMAT, study: STUDY.id, rater, answers: whole }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
  const word = rater.normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "");
  link.download = `juice-${STUDY.id.slice(0, 8)}-${word || "rater"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  const done = STEPS.filter(isWhole).length;
  say(`Saved ${done} of ${STEPS.length} answers as ${link.download}, among your downloads.`);
}

// What is shown.

function say(text) {
  $("alert").textContent = "";
  $("status").textContent = text;
}

function warn(text) {
  $("status").textContent = "";
  $("alert").textContent = text;
}

function element(kind, text, ...inside) {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  made.append(...inside);
  return made;
}

function show(step) {
  at = step;
  say("");
  const names = { "-1": "start", [STEPS.length]: "end" };
  const shown = names[at] || "ask";
  for (const id of ["start", "ask", "end"]) $(id).hidden = id !== shown;
  if (shown === "ask") showQuestion(STEPS[at]);
  else for (const side of ["left", "right"]) $(side + "-frame").replaceChildren();
  showProgress();
  window.scrollTo(0, 0);
  if (shown === "start") $("rater").select(); // another rater types over the name
  else if (shown === "end") $("save").focus();
  else $("question").focus();
}

function showProgress() {
  const done = STEPS.filter(isWhole).length;
  $("progress").max = STEPS.length;
  $("progress").value = done;
  $("share").textContent = at < 0 ? "" : `${done} of ${STEPS.length} answered`;
  const pair = Math.floor(at / STUDY.questions.length) + 1;
  const part = (at % STUDY.questions.length) + 1;
  $("place").textContent =
    at < 0 || at === STEPS.length
      ? "Which video is better?"
      : `Pair ${pair} of ${STUDY.items.length}, question ${part} of ${STUDY.questions.length}`;
}

function showQuestion(step) {
  const given = answer(step);
  $("question").textContent = step.question.text;
  $("prompt").hidden = !step.question.shows_prompt;
  $("prompt").textContent = step.question.shows_prompt ? step.item.prompt : "";
  showVideos(step.item);
  for (const input of document.getElementsByName("choice")) {
    input.checked = input.value === given.choice;
  }
  $("list").replaceChildren(
    ...step.question.reasons.map((reason, i) => {
      const box = element("input");
      box.type = "checkbox";
      box.id = "reason-" + reason.name;
      box.value = reason.name;
      box.checked = given.reasons.includes(reason.name);
      box.setAttribute("aria-describedby", box.id + "-what");
      box.addEventListener("change", () => tick(reason, box.checked));
      const what = element("small", reason.explanation);
      what.id = box.id + "-what";
      const name = element("label", "", box, element("kbd", String(i + 1)), element("b", reason.title));
      return element("div", "", name, what);
    })
  );
}

function showVideos(item) {
  if ($("ask").dataset.item === item.id && $("left-frame").firstChild) return; // they go on playing
  $("ask").dataset.item = item.id;
  setPaused(false);
  const made = ["left", "right"].map((side) => {
    const shown = medium(item[side]);
    shown.setAttribute("aria-label", `${side} video`);
    shown.addEventListener("error", () =>
      warn(`The ${side} video, ${item[side]}, cannot be shown. Tell the person who asked you.`)
    );
    $(side + "-frame").replaceChildren(shown);
    return shown;
  });
  // Both begin together, once both can.
  Promise.all(made.map(loaded)).then(() => made[0].isConnected && replay());
  const following = STUDY.items[STUDY.items.indexOf(item) + 1];
  if (following) ahead = [medium(following.left), medium(following.right)];
}

function medium(file) {
  const made = element(/\.(gif|webp)$/.test(file) ? "img" : "video");
  if (made.tagName === "IMG") made.alt = "";
  else Object.assign(made, { muted: true, loop: true, playsInline: true, preload: "auto" });
  made.src = file;
  return made;
}

function loaded(shown) {
  const event = shown.tagName === "IMG" ? "load" : "canplaythrough";
  return new Promise((ready) => {
    for (const name of [event, "error"]) shown.addEventListener(name, ready, { once: true });
  });
}

function videos() {
  return [...document.querySelectorAll("video")];
}

function replay() {
  setPaused(false);
  for (const video of videos()) {
    video.currentTime = 0;
    video.play().catch(() => {}); // a browser that forbids it leaves the first frame: R plays
  }
}

function setPaused(paused) {
  $("pause").setAttribute("aria-pressed", String(paused));
  for (const video of videos()) paused ? video.pause() : video.play().catch(() => {});
}

// What a rater does.

function choose(side) {
  answer(STEPS[at]).choice = side;
  for (const input of document.getElementsByName("choice")) input.checked = input.value === side;
  keep();
  showProgress();
  say(`Chosen: ${side}.`);
}

function tick(reason, on) {
  const given = answer(STEPS[at]);
  const names = STEPS[at].question.reasons.map((other) => other.name);
  given.reasons = names.filter((name) => (name === reason.name ? on : given.reasons.includes(name)));
  $("reason-" + reason.name).checked = on;
  keep();
  showProgress();
  say(`Reason ${on ? "given" : "taken back"}: ${reason.title.toLowerCase()}.`);
}

function next() {
  const given = answer(STEPS[at]);
  if (!given.choice) {
    warn("Choose a video first: ← for the left one, → for the right one.");
    $("choice").querySelector("input").focus();
  } else if (!given.reasons.length) {
    warn("Give at least one reason.");
    $("list").querySelector("input").focus();
  } else {
    let to = at + 1;
    const open = STEPS.findIndex((step) => !isWhole(step));
    if (to === STEPS.length && open >= 0) to = open; // one was undone on the way back
    show(to);
    keep();
  }
}

function back() {
  show(at - 1);
  if (at >= 0) keep();
}

const KEYS = {
  ArrowLeft: () => choose("left"),
  ArrowRight: () => choose("right"),
  Enter: next,
  Backspace: back,
  p: () => setPaused($("pause").getAttribute("aria-pressed") !== "true"),
  r: replay,
  s: save,
};
const END_KEYS = { Backspace: back, s: save };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at < 0) return;
  if (event.key === "Enter" && event.target.tagName === "BUTTON") return; // it is pressed
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let act = (at === STEPS.length ? END_KEYS : KEYS)[key];
  if (!act && at < STEPS.length) {
    // By place as well: some keyboards have the digits under Shift.
    const digit = /^Digit(\d)$/.exec(event.code)?.[1] || key;
    const reason = STEPS[at].question.reasons[Number(digit) - 1];
    if (reason) act = () => tick(reason, !answer(STEPS[at]).reasons.includes(reason.name));
  }
  if (!act) return;
  event.preventDefault();
  if (!event.repeat) act();
});

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("rater").value.trim().replace(/\s+/g, " ");
  if (!name) return warn("Give your name first.");
  show(take(name));
  keep();
});
for (const input of document.getElementsByName("choice")) {
  input.addEventListener("change", () => choose(input.value));
}
for (const [id, act] of Object.entries({
  back, next, replay, save, keep: save, review: back, pause: KEYS.p,
})) {
  $(id).addEventListener("click", act);
}

// Begin.

$("summary").textContent =
  `You will see ${STUDY.items.length} pair${STUDY.items.length > 1 ? "s" : ""} of videos and answer ` +
  `${STUDY.questions.length} questions about each.`;
$("explained").append(
  ...STUDY.questions.map((question) =>
    element("section", "", element("h2", question.text), element("dl", "",
      ...question.reasons.flatMap((r) => [element("dt", r.title), element("dd", r.explanation)])
    ))
  )
);
const last = shelf().last;
$("rater").value = last;
if (last) {
  const where = take(last);
  show(where);
  say(`Welcome back, ${last}. Not you? Go back to the first page and give your own name.`);
} else {
  show(-1);
}
