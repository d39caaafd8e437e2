// What the cluster is like now: asked for once, then told as it changes.

import { ask, events, Refused } from "./ask.js";

const PATIENCE_MS = 15_000; // three signs of life
const HIDDEN_MS = 20_000; // a tab that nobody looks at gives its place to others
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

/**
 * Tell `seen(parts, aheadMs)` of the cluster (api/sight.py) for as long as the page lives: a map of
 * maps of items, and how far the node's clock is ahead of performance.now(), which nobody sets:
 * this machine's own clock may be wrong, or be put right meanwhile. `lost(error)` is told what
 * went wrong, and may return a promise that is waited for before the next try.
 */
export async function watch(seen, lost) {
  for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS)) {
    try {
      await follow(seen, () => (waitMs = FIRST_WAIT_MS));
    } catch (error) {
      if (error.name === "AbortError" && document.hidden) await lookedAt();
      else {
        const silent = error.name === "AbortError" ? new Refused(0, "this node is silent") : error;
        await lost(silent);
        await pause(waitMs);
      }
    }
  }
}

async function follow(seen, came) {
  const abort = new AbortController();
  const giveUp = () => abort.abort();
  let silence = setTimeout(giveUp, PATIENCE_MS);
  let unseen = 0;
  const look = () => {
    clearTimeout(unseen);
    if (document.hidden) unseen = setTimeout(giveUp, HIDDEN_MS);
  };
  document.addEventListener("visibilitychange", look);
  look();
  try {
    const response = await ask("cluster/watch", { signal: abort.signal });
    const date = Date.parse(response.headers.get("Date"));
    const aheadMs = (Number.isNaN(date) ? Date.now() : date + 500) - performance.now();
    const parts = new Map();
    for await (const data of events(response)) {
      clearTimeout(silence);
      silence = setTimeout(giveUp, PATIENCE_MS);
      came();
      const event = JSON.parse(data);
      if (event.end) throw new Refused(0, event.end);
      if (event.whole) parts.clear();
      change(parts, event.whole ?? event.changed ?? {});
      seen(parts, aheadMs);
    }
    throw new Refused(0, "this node has hung up");
  } finally {
    clearTimeout(silence);
    clearTimeout(unseen);
    document.removeEventListener("visibilitychange", look);
    abort.abort();
  }
}

// Maps, as a model may be called __proto__.
function change(parts, changed) {
  for (const [part, items] of Object.entries(changed)) {
    if (!parts.has(part)) parts.set(part, new Map());
    for (const [key, item] of Object.entries(items)) {
      if (item === null) parts.get(part).delete(key);
      else parts.get(part).set(key, item);
    }
  }
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function lookedAt() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}
