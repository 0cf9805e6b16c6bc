// What the pages do beyond what a browser does by itself: they follow what happens,
// say times as how long ago, and listen to a few keys. Without this file everything
// else works as it is.
"use strict";

const root = document.documentElement;
const main = document.getElementById("main");
const live = document.getElementById("live");
root.classList.add("script");

// ---- times -------------------------------------------------------------------

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function length(seconds) {
  if (seconds < 1) return "0 s";
  const at = UNITS.findIndex(([size]) => seconds >= size);
  const [size, unit] = UNITS[at];
  const whole = Math.floor(seconds / size);
  const next = UNITS[at + 1];
  const rest = next && whole < 10 && size !== 60 ? Math.floor((seconds % size) / next[0]) : 0;
  return `${whole} ${unit}` + (rest ? ` ${rest} ${next[1]}` : "");
}

let skew = 0; // how far this machine's clock is ahead of the server's, in milliseconds

function sayTimes(within) {
  const now = Date.now() - skew;
  for (const each of within.querySelectorAll("time[datetime]")) {
    const away = (now - Date.parse(each.dateTime)) / 1000;
    if (Number.isNaN(away)) continue;
    const text = "since" in each.dataset ? length(Math.max(away, 0))
      : Math.abs(away) < 1 ? "now" : away > 0 ? `${length(away)} ago` : `in ${length(-away)}`;
    if (each.textContent !== text) each.textContent = text;
  }
}

// ---- morphing ------------------------------------------------------------------
// The page stays; what differs in the new one is written into it. What people have
// opened, ticked, typed, chosen, scrolled or focused is theirs and stays as it is. A
// field that nobody has touched follows, or saving it would undo what others saved.

const KEPT = { DETAILS: ["open"], DIALOG: ["open"], INPUT: ["value", "checked"], OPTION: ["selected"] };

function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (isUntouched(old)) old.value = old.defaultValue = fresh.defaultValue;
  if (old.nodeName === "TEXTAREA") return;
  const asGiven = old.nodeName === "SELECT" && old.selectedIndex === given(old);
  const kept = KEPT[old.nodeName] || [];
  for (const { name, value } of fresh.attributes) {
    if (!kept.includes(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!kept.includes(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  if (asGiven) {
    old.replaceChildren(...fresh.childNodes);
    old.selectedIndex = given(old); // the one they left chose another for each that went
  } else {
    morphChildren(old, fresh);
  }
}

const isUntouched = (field) =>
  (field.nodeName === "TEXTAREA" || (field.nodeName === "INPUT" && field.type !== "checkbox")) && field.value === field.defaultValue;
const given = (select) => Math.max([...select.options].findIndex((each) => each.defaultSelected), 0);

// Not `node.id`: a form that has a field named "id" answers with that.
const idOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("id") : null);

function morphChildren(old, fresh) {
  const keyed = new Map();
  for (const each of old.children) if (idOf(each)) keyed.set(idOf(each), each);
  let here = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const id = idOf(next);
    let match = id ? keyed.get(id) : here;
    if (!id && match && idOf(match)) match = null; // a keyed one waits for its own
    if (!match || (!id && match.nodeName !== next.nodeName)) {
      old.insertBefore(next, here);
      continue;
    }
    keyed.delete(id);
    if (match === here) here = here.nextSibling;
    else old.insertBefore(match, here);
    morph(match, next);
  }
  while (here) {
    const gone = here;
    here = here.nextSibling;
    gone.remove();
  }
}

// ---- following -------------------------------------------------------------------

const UNWATCHED_MS = 30 * 60 * 1000; // nobody touched the page for so long: stop asking
let etag = null;
let wait = Number(main.dataset.poll) || 0;
let timer = 0;
let asking = null;
let touched = Date.now();
let following = remembered() !== "off";
let gone = false; // what the page is about was deleted: there is nothing left to follow

function remembered(value) {
  try {
    if (value !== undefined) localStorage.setItem("dispatch-live", value);
    return localStorage.getItem("dispatch-live");
  } catch {
    return null;
  }
}

function isSelecting() {
  const selection = document.getSelection();
  if (selection && !selection.isCollapsed && main.contains(selection.anchorNode)) return true;
  if (main.querySelector("input[name=id]:checked, details.edit[open]")) return true;
  const focus = document.activeElement;
  return Boolean(focus && main.contains(focus) && focus.matches("input:not([type=checkbox]), textarea, select"));
}

function show(state) {
  live.dataset.state = gone ? "gone" : state;
  live.setAttribute("aria-pressed", String(following && wait > 0));
  live.lastElementChild.textContent =
    gone ? "Gone" : !wait ? "Still" : !following ? "Paused" : state === "away" ? "No answer" : state === "held" ? "Held" : "Live";
  root.classList.toggle("paused", !following || state === "held");
}

function plan(seconds) {
  clearTimeout(timer);
  if (following && wait > 0 && !document.hidden) timer = setTimeout(ask, seconds * 1000);
}

async function ask() {
  if (asking || document.hidden || !following || !wait) return;
  if (Date.now() - touched > UNWATCHED_MS) {
    following = false;
    show("paused");
    return;
  }
  if (isSelecting()) {
    show("held");
    plan(1);
    return;
  }
  asking = new AbortController();
  let state = "live";
  try {
    const headers = etag ? { "If-None-Match": etag } : {};
    const url = location.pathname + location.search;
    const answer = await fetch(url, { headers, cache: "no-store", signal: asking.signal, redirect: "error" });
    if (answer.status === 200) {
      const text = await answer.text();
      // Whoever began to select or to type meanwhile keeps what is there.
      if (!isSelecting() && !document.hidden) {
        take(text);
        etag = answer.headers.get("ETag");
      }
    } else if (answer.status === 404) {
      gone = true;
      wait = 0;
    } else if (answer.status !== 304) {
      throw new Error(String(answer.status));
    }
    const date = Date.parse(answer.headers.get("Date") || "");
    if (!Number.isNaN(date)) skew = Math.abs(Date.now() - date) > 5000 ? Date.now() - date : 0;
    const said = answer.headers.get("Poll-After");
    if (said !== null) wait = Number(said);
  } catch {
    state = "away";
  }
  asking = null;
  show(state);
  plan(state === "away" ? Math.max(wait, 5) * 2 : wait);
}

function take(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const next = fresh.getElementById("main");
  if (!next) throw new Error("no page");
  if (document.title !== fresh.title) document.title = fresh.title;
  const notice = document.getElementById("notice");
  if (notice && !next.querySelector("#notice")) next.prepend(document.importNode(notice, true));
  morph(main, next);
  sayTimes(main);
}

live.addEventListener("click", () => {
  following = !following;
  touched = Date.now();
  remembered(following ? "on" : "off");
  show("live");
  if (following) ask();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    if (asking) asking.abort();
  } else {
    sayTimes(document);
    plan(0.2);
  }
});
for (const kind of ["pointerdown", "keydown", "scroll"]) {
  addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
}
setInterval(() => { if (!document.hidden) sayTimes(document); }, 1000);

// What a redirect made the page say is said once.
if (location.search.includes("did=")) {
  const query = new URLSearchParams(location.search);
  for (const name of ["did", "n", "more"]) query.delete(name);
  history.replaceState(null, "", location.pathname + (query.size ? `?${query}` : "") + location.hash);
}
if (location.hash === "#edit") openEditor();
addEventListener("hashchange", () => { if (location.hash === "#edit") openEditor(); });

function openEditor() {
  const editor = document.getElementById("editor");
  if (editor) editor.open = true;
}

// ---- ticking ---------------------------------------------------------------------

function countTicked() {
  const chosen = document.getElementById("chosen");
  if (chosen) chosen.textContent = main.querySelectorAll("input[name=id]:checked").length;
}
main.addEventListener("change", (event) => {
  if (event.target.id === "every") {
    for (const each of main.querySelectorAll("input[name=id]")) each.checked = event.target.checked;
  }
  countTicked();
});
addEventListener("pageshow", countTicked);

// ---- previewing a cron text ---------------------------------------------------------

let typed = 0;
let latest = 0;
main.addEventListener("input", (event) => {
  const form = event.target.form;
  if (!form || !("preview" in form.dataset) || !["spec", "zone", "dst"].includes(event.target.name)) return;
  clearTimeout(typed);
  typed = setTimeout(async () => {
    const mine = ++latest;
    const body = new URLSearchParams(new FormData(form));
    body.set("action", "preview");
    try {
      const answer = await fetch(form.getAttribute("action"), { method: "POST", body, redirect: "error" });
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("preview");
      if (fresh && mine === latest) {
        morph(document.getElementById("preview"), fresh);
        sayTimes(main);
      }
    } catch { /* the button is there, too */ }
  }, 250);
});

// ---- keys ---------------------------------------------------------------------------

const help = document.getElementById("help");
document.getElementById("keys").addEventListener("click", () => help.showModal());
let afterG = 0;

function step(by) {
  const rows = [...main.querySelectorAll("tr[id]:has(a.task)")];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + by, 0), rows.length - 1)];
  next.querySelector("a.task").focus();
  next.scrollIntoView({ block: "nearest" });
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
  if (event.target.matches("input:not([type=checkbox]), textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (afterG && Date.now() - afterG < 1500) {
    afterG = 0;
    const link = document.querySelector(`.bar nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) link.click();
    return;
  }
  const ticked = event.key === "x" && document.activeElement.closest("tr")?.querySelector("input[name=id]");
  if (event.key === "g") afterG = Date.now();
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === ".") live.click();
  else if (event.key === "?") help.showModal();
  else if (event.key === "/" && document.getElementById("filter")) document.getElementById("filter").focus();
  else if (ticked) ticked.click();
  else return;
  event.preventDefault();
});

sayTimes(document);
show("live");
plan(wait);
