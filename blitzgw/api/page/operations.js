// Operations: what the cluster is doing to have other numbers of instances, and how it went.

import { assembled, bar, fill, keyed, make, mark, say } from "./dom.js";
import { age, duration, line, share, size } from "./units.js";

const TONES = { done: "good", failed: "bad", cancelled: "warn" };

export function createOperation() {
  const head = assembled("div", "line", {
    what: make("strong"),
    state: make("span", "badge"),
    how: make("span", "quiet"),
  });
  const targets = make("ul", "rows");
  const row = assembled("article", "operation", { head, reason: make("p", "reason"), targets });
  Object.assign(row.parts, head.parts);
  return row;
}

/** Show an operation. `now` is Unix time; `places` tells where each instance is, by id. */
export function updateOperation(row, operation, now, places) {
  const { what, state, how, reason, targets } = row.parts;
  const { instances_before: before, instances_wanted: wanted, ended } = operation;
  const change = operation.kind === "copy" ? "copy into host memory" : `${before} → ${wanted}`;
  say(what, `${operation.model} ${change}`);
  say(state, operation.state);
  mark(state, "data-tone", TONES[operation.state] ?? "busy");
  say(how, ended ? past(operation, now) : present(operation, now));
  say(reason, operation.reason ?? "");
  mark(row, "data-ended", ended);
  const helped = new Map(operation.pairs.map(({ worker, home }) => [worker, home]));
  const total = operation.size_bytes;
  keyed(targets, operation.targets, ({ worker }) => worker, createTarget, (target, item) =>
    updateTarget(target, item, operation, total, places.get(helped.get(item.worker)) ?? ""),
  );
}

function past({ elapsed_s: elapsed, started }, now) {
  return `after ${duration(elapsed)}, ${age(now - started - elapsed)} ago`;
}

function present({ started, predicted_s: predicted, strategy, policy }, now) {
  const whole = predicted.complete;
  const told = whole === null ? "" : `predicted ${duration(whole)}`;
  return line(age(now - started), told, strategy, policy);
}

function createTarget() {
  const row = assembled("li", "target", {
    where: make("span", "where"),
    state: make("span", "badge"),
    layers: make("span", "layers"),
    from: make("span", "helps"),
  });
  const meter = bar("Weights that are there");
  const told = make("span");
  row.parts.layers.append(meter, told);
  return Object.assign(row, { parts: { ...row.parts, meter, told } });
}

function updateTarget(row, target, operation, total, home) {
  const { where, state, meter, told, from } = row.parts;
  const tone = { ready: "good", failed: "bad", released: "warn" }[target.state] ?? "busy";
  const there = Math.min(target.resident_bytes, total);
  const edges = operation.edges.filter((edge) => edge.target === target.worker);
  say(where, target.worker);
  say(state, target.state);
  mark(state, "data-tone", tone);
  say(told, `${share(there / Math.max(1, total))} of ${size(total)}`);
  fill(meter, [[0, there]], total, told.textContent);
  mark(meter, "data-tone", tone);
  const helps = home && tone === "busy" ? `helps ${home}` : "";
  say(from, target.reason ?? line(...edges.map(source), helps));
}

function source({ source: from, rate_bytes_per_s: rate }) {
  return rate ? `from ${from} at ${size(rate)}/s` : `from ${from}`;
}
