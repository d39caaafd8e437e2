// Joins what the node tells with what is shown, and asks the reader for a key where one is needed.

import { key, useKey } from "./ask.js";
import { offer, startChat } from "./chat.js";
import { drawCluster } from "./cluster.js";
import { eachFrame, mark, say } from "./dom.js";
import { watch } from "./live.js";

const TICK_MS = 1000; // times that pass are drawn so often

const at = (id) => document.getElementById(id);
const shown = { parts: null, aheadMs: 0, lost: null };
let keyGiven = () => {};

function draw() {
  drawState();
  if (!shown.parts) return;
  offer([...(shown.parts.get("models")?.keys() ?? [])].sort());
  drawCluster(shown.parts, (performance.now() + shown.aheadMs) / 1000);
}

const drawSoon = eachFrame(draw);

function drawState() {
  const own = shown.parts?.get("here")?.get("");
  const { lost } = shown;
  const [tone, word] = lost
    ? ["bad", lost.status ? "Refused" : "Not connected"]
    : !own
      ? ["quiet", "Connecting"]
      : own.accepting
        ? ["good", "Up"]
        : ["warn", "Not ready"];
  mark(at("up"), "data-tone", tone);
  say(at("up").lastElementChild, own ? `${word}, ${own.node}` : word);
  mark(at("up"), "title", own ? `blitzgw ${own.version}` : null);
  mark(document.body, "data-stale", lost && own ? "" : null);
  const missing = own?.missing.length ? `Not every node tells its ${own.missing.join(", ")}.` : "";
  const locked = lost?.status === 401; // until its reader gives another key
  const trouble = locked ? lost.message : lost && `${lost.message}; trying again`;
  say(at("trouble"), trouble ?? own?.reason ?? missing);
  at("change-key").hidden = !key() && !locked;
  document.title = own ? `${word}: ${own.node} – blitzgw` : "blitzgw";
}

function seen(parts, aheadMs) {
  Object.assign(shown, { parts, aheadMs, lost: null });
  drawSoon();
}

/** Show that the node does not tell anything; wait for a key where that is what it wants. */
async function lost(error) {
  shown.lost = error;
  drawSoon();
  if (error.status === 401) await askForKey(error.message);
}

function askForKey(why) {
  say(at("key-why"), why);
  at("key").value = "";
  if (!at("key-dialog").open) at("key-dialog").showModal();
  return new Promise((resolve) => {
    const before = keyGiven;
    keyGiven = () => {
      before();
      resolve();
    };
  });
}

function startKeys() {
  at("key-form").addEventListener("submit", () => {
    useKey(at("key").value.trim());
    const given = keyGiven;
    keyGiven = () => {};
    given();
  });
  at("change-key").addEventListener("click", () => {
    const refused = shown.lost?.status === 401 && shown.lost.message;
    askForKey(refused || "This key is used now; another one takes its place.");
  });
}

function startViews() {
  const buttons = document.querySelectorAll("button[data-shows]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.shows;
      for (const each of buttons) mark(each, "aria-pressed", each === button);
    });
  }
}

startKeys();
startViews();
startChat((error) => {
  if (error.status !== 401) return false;
  askForKey(error.message);
  return true;
});
setInterval(drawSoon, TICK_MS);
watch(seen, lost);
