// The cluster: sums, models with their instances, operations, nodes.

import { assembled, keyed, make, mark, say } from "./dom.js";
import { createInstance, placeOf, rateOf, updateInstance } from "./instances.js";
import { createOperation, updateOperation } from "./operations.js";
import { age, count, duration, line, many, size } from "./units.js";

const MOST_ROWS = 200; // of one kind: more would take long to draw, and nobody reads them
const PAST_OPERATIONS = 5;
const KINDS = { cpu: "CPU", cuda: "GPU", paced: "paced", host: "no device" };
const STATUS_TONES = { alive: "good", suspect: "warn", dead: "bad", left: "quiet" };

const at = (id) => document.getElementById(id);
const NONE = new Map();
const { compare } = new Intl.Collator("en", { numeric: true });

/** Draw what is told of the cluster (api/sight.py). `now` is Unix time, in seconds. */
export function drawCluster(parts, now) {
  const part = (name) => parts.get(name) ?? NONE;
  const nodes = part("nodes");
  const keys = part("instances").entries(); // two nodes may have one name
  const instances = Array.from(keys, ([key, each]) => ({ ...each, key })).sort(inOrder);
  const devices = new Map([...nodes.values()].map((node) => [node.name, node.devices.length]));
  const places = new Map(instances.map((each) => [each.id, placeOf(each, devices)]));
  drawSums(nodes, instances);
  drawModels(part("models"), instances, part("measured"), places, now);
  drawOperations([...part("operations").values()], now, places);
  drawNodes([...nodes.entries()], instances, now);
}

function inOrder(a, b) {
  return compare(a.node, b.node) || (a.key < b.key ? -1 : 1);
}

function drawSums(nodes, instances) {
  const sum = (read) => instances.reduce((total, each) => total + (read(each) ?? 0), 0);
  const living = [...nodes.values()].filter(lives).length;
  const serving = instances.filter(({ state }) => state === "serving").length;
  const loading = instances.filter(({ state }) => state === "loading").length;
  const figures = [
    ["nodes", living === nodes.size ? count(living) : `${count(living)} of ${count(nodes.size)}`],
    ["serving", count(serving)],
    ["loading", count(loading)],
    ["running", count(sum((each) => each.running))],
    ["waiting", count(sum((each) => each.waiting))],
    ["tokens/s", count(sum(rateOf))],
  ];
  const create = ([name]) =>
    assembled("li", "", { value: make("b"), name: make("span", "", name) });
  keyed(at("sums"), figures, ([name]) => name, create, (item, [, value]) =>
    say(item.parts.value, value),
  );
}

function lives({ status }) {
  return status === "alive" || status === "suspect";
}

function drawModels(models, instances, measured, places, now) {
  const shown = [...models.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  keyed(at("models"), shown, ({ name }) => name, createModel, (card, model) => {
    const own = instances.filter((each) => each.model === model.name);
    updateModel(card, model, own, measured.get(model.name), now);
    const { list, more } = card.parts;
    const rows = own.slice(0, MOST_ROWS);
    const update = (row, each) => updateInstance(row, each, places);
    keyed(list, rows, ({ key }) => key, createInstance, update);
    say(more, own.length > MOST_ROWS ? `and ${many(own.length - MOST_ROWS, "more", "more")}` : "");
  });
}

function createModel() {
  const head = assembled("div", "line", {
    name: make("h3"),
    state: make("span", "badge"),
    number: make("span", "quiet"),
  });
  const card = assembled("article", "model", {
    head,
    figures: make("p", "figures"),
    list: make("ul", "rows"),
    more: make("p", "quiet"),
    last: make("p", "quiet"),
  });
  Object.assign(card.parts, head.parts);
  return card;
}

function updateModel(card, model, own, told, now) {
  const { name, state, number, figures, last } = card.parts;
  const [word, tone] = stateOf(own, model.scaling);
  say(name, model.name);
  mark(name, "title", [model.name, ...model.aliases].join(", "));
  say(state, word);
  mark(state, "data-tone", tone);
  say(number, line(...numbers(model, own, now)));
  const { ttft_s: ttft, tpot_s: tpot } = model.terms;
  say(
    figures,
    line(latency("TTFT", "ttft", ttft, told), latency("TPOT", "tpot", tpot, told)),
  );
  say(last, told?.last ? decision(told.last, now) : "");
}

function stateOf(own, scaling) {
  const has = (state) => own.some((each) => each.state === state);
  if (has("serving")) return has("loading") ? ["growing", "busy"] : ["serving", "good"];
  if (has("loading")) return ["loading", "busy"];
  return scaling?.wanted > 0 ? ["down", "bad"] : ["scaled to zero", "quiet"];
}

function numbers(model, own, now) {
  const { scaling, ready, wish, host_copies: copies } = model;
  const serving = own.filter(({ state }) => state === "serving").length;
  const wanted = scaling?.wanted ?? null;
  return [
    wanted === null || wanted === serving
      ? many(serving, "instance")
      : `${count(serving)} of ${count(wanted)} wanted`,
    typeof wish === "number" ? `set to ${wish}` : (scaling?.mode ?? model.terms.mode),
    ready > now && `next in ${duration(ready - now)}`,
    `${model.layers} layers`,
    copies > 0 && many(copies, "host copy", "host copies"),
    model.conflict && "nodes define it differently",
  ];
}

/** Return P50 and P90 of a latency beside its target, empty where nothing is measured. */
function latency(label, name, target, told) {
  const [p50, p90] = ["p50", "p90"].map((p) => told?.quantiles[`${name}_${p}_s`]);
  if (p50 === undefined || p90 === undefined) return "";
  const wanted = `target ${duration(target)}${p90 > target ? ", missed" : ""}`;
  return `${label} P50 ${duration(p50)}, P90 ${duration(p90)} (${wanted})`;
}

function decision({ action, present, wanted, reason, acted, at: then }, now) {
  const change = present === wanted ? "" : ` ${present} → ${wanted}`;
  const advice = acted ? "" : " (advice)";
  return line(`${action}${change}${advice}, ${age(now - then)} ago`, reason);
}

function drawOperations(operations, now, places) {
  const running = operations.filter(({ ended }) => !ended);
  const past = operations.filter(({ ended }) => ended);
  const newest = (a, b) => b.started - a.started || (a.id < b.id ? -1 : 1);
  const shown = [...running.sort(newest), ...past.sort(newest).slice(0, PAST_OPERATIONS)];
  at("operations-section").hidden = !shown.length;
  const update = (row, operation) => updateOperation(row, operation, now, places);
  keyed(at("operations"), shown, ({ id }) => id, createOperation, update);
}

function drawNodes(nodes, instances, now) {
  const order = ([, a], [, b]) =>
    lives(b) - lives(a) || compare(a.name, b.name);
  const shown = nodes.sort(order).slice(0, MOST_ROWS);
  keyed(at("nodes"), shown, ([boot]) => boot, createNode, (row, [, node]) =>
    updateNode(row, node, instances, now),
  );
}

function createNode() {
  return assembled("li", "node", {
    where: make("a", "where"),
    state: make("span", "badge"),
    devices: make("span", "devices"),
    busy: make("span", "busy"),
  });
}

function updateNode(row, node, instances, now) {
  const { where, state, devices, busy } = row.parts;
  const own = instances.filter((each) => each.node === node.name);
  const draining = node.draining && lives(node);
  say(where, node.name);
  mark(where, "href", lives(node) ? webAddress(node.http) : null);
  say(state, draining ? "draining" : node.status);
  mark(state, "data-tone", draining ? "warn" : (STATUS_TONES[node.status] ?? "quiet"));
  say(devices, node.devices.map(device).join(", "));
  const told = [
    own.length > 0 && many(own.length, "instance"),
    node.copies.length > 0 && many(node.copies.length, "host copy", "host copies"),
    node.free_bytes !== null && `${size(node.free_bytes)} free`,
    `up ${age(now - node.started)}`,
    node.conflict && "another node has this name",
  ];
  say(busy, lives(node) ? line(...told) : "");
}

function device({ id, kind, memory_bytes: bytes }) {
  return line(`${id} ${KINDS[kind] ?? kind}`, bytes > 0 && size(bytes));
}

/** Return an address that leads to a web server, null for any other. */
function webAddress(text) {
  const url = URL.canParse(text ?? "") ? new URL(text) : null;
  return url && ["http:", "https:"].includes(url.protocol) ? url.href : null;
}
