// Instances: where they are, how much of them, whom they help, how busy they are.

import { assembled, bar, fill, make, mark, say } from "./dom.js";
import { count, line, share } from "./units.js";

const TONES = { serving: "good", loading: "busy", draining: "warn", kept: "quiet" };

/** Return where an instance is: its node, and the device where that has several; by node's name. */
export function placeOf(instance, devices) {
  return devices.get(instance.node) === 1 ? instance.node : `${instance.node}/${instance.device}`;
}

/** Return the tokens that an instance generates per second, null where that is not known. */
export function rateOf({ running, decode_step_s: step_s }) {
  if (running === null || (running > 0 && !step_s)) return null;
  return running ? running / step_s : 0;
}

export function createInstance() {
  const layers = make("span", "layers");
  const meter = bar("Layers that are there");
  const told = make("span");
  layers.append(meter, told);
  const row = assembled("li", "instance", {
    where: make("span", "where"),
    state: make("span", "badge"),
    layers,
    helps: make("span", "helps"),
    busy: make("span", "busy"),
  });
  Object.assign(row.parts, { meter, told });
  return row;
}

/** Show an instance. `places` tells where each is, by id. */
export function updateInstance(row, instance, places) {
  const { where, state, meter, told, helps, busy } = row.parts;
  const { layers_resident: there, layers_total: total } = instance;
  say(where, places.get(instance.id) ?? instance.node);
  mark(where, "title", instance.id);
  say(state, instance.state);
  mark(state, "data-tone", TONES[instance.state] ?? "quiet");
  say(told, `${there}/${total}`);
  fill(meter, instance.resident, total, `${there} of ${total} layers`);
  mark(meter, "data-tone", TONES[instance.state] ?? "quiet");
  say(helps, helping(instance, places));
  say(busy, load(instance));
  mark(row, "data-state", instance.state);
}

function helping({ helps, stage, state }, places) {
  if (state !== "loading") return "";
  return line(
    helps && `helps ${places.get(helps) ?? helps}`,
    stage && `runs layers ${stage[0]} to ${stage[1] - 1}`,
  );
}

function load(instance) {
  const { running, waiting, kv_usage: kv } = instance;
  if (running === null) return "";
  const rate = rateOf(instance);
  if (!running && !waiting) return instance.state === "serving" ? "idle" : "";
  return line(
    `${count(running)} running`,
    waiting > 0 && `${count(waiting)} waiting`,
    kv > 0 && `KV ${share(kv)}`,
    rate > 0 && `${count(rate)} tokens/s`,
  );
}
