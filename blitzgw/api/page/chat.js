// The box to chat in: one conversation, answered by whichever instance the node picks.

import { ask, events, Refused } from "./ask.js";
import { eachFrame, make, say } from "./dom.js";
import { duration, line, many } from "./units.js";

const at = (id) => document.getElementById(id);
const NEAR_PX = 40; // who has scrolled up further than this is reading

let said = []; // the conversation, as it is sent
let answering = null; // the AbortController of the answer under way
let wanted = ""; // the model that was chosen, which may be gone for a while

/** Make the box work. `refused(error)` is told of errors; true: it will lead to another try. */
export function startChat(refused) {
  at("say").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!answering) converse(refused);
  });
  at("words").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    at("say").requestSubmit(at("send"));
  });
  at("words").addEventListener("input", ready);
  at("model").addEventListener("change", () => (wanted = at("model").value));
  at("stop").addEventListener("click", () => answering?.abort());
  at("anew").addEventListener("click", forget);
  at("chat").addEventListener("keydown", (event) => {
    if (event.key === "Escape") answering?.abort();
  });
}

/** Offer these models. */
export function offer(names) {
  const select = at("model");
  const known = [...select.options].map(({ value }) => value);
  if (known.join("\n") === names.join("\n")) return;
  const chosen = [wanted, select.value].find((name) => names.includes(name));
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (chosen !== undefined) select.value = chosen;
  select.disabled = !names.length;
  ready();
}

function ready() {
  at("send").disabled = Boolean(answering) || !at("model").value || !at("words").value.trim();
  at("send").hidden = Boolean(answering);
  at("stop").hidden = !answering;
}

function forget() {
  answering?.abort();
  said = []; // what is still being answered belongs to the old one
  at("talk").replaceChildren();
  at("words").focus();
}

async function converse(refused) {
  const words = at("words").value.trim();
  if (!words || !at("model").value) return;
  const question = { role: "user", content: words };
  const asked = entry("user", words);
  const { element, text, note } = entry("assistant", "");
  at("words").value = "";
  answering = new AbortController();
  ready();
  element.setAttribute("aria-busy", "true");
  say(note, "Waiting for the first token");
  const answer = { content: "", tokens: 0, finish: null, sent: performance.now() };
  const before = said;
  const show = () => grow(text, answer.content);
  const showSoon = eachFrame(show); // each time costs a look at the whole text
  try {
    await stream([...before, question], answering.signal, answer, () => {
      if (answer.content) say(note, "Answering");
      showSoon();
    });
    say(note, figures(answer));
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (!stopped) note.classList.add("error");
    say(note, stopped ? line("stopped", figures(answer)) : told(error));
    if (!stopped && !answer.content && refused(error)) {
      at("words").value ||= words; // for another try
      asked.element.remove();
      element.remove();
    }
  }
  show(); // a hidden page has no frames
  if (answer.content) before.push(question, { role: "assistant", content: answer.content });
  element.removeAttribute("aria-busy");
  answering = null;
  ready();
  if (at("talk").contains(element)) scroll(true);
}

async function stream(messages, signal, answer, grew) {
  const system = at("system").value.trim();
  const body = {
    model: at("model").value,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: number("most"),
    temperature: number("temperature"),
  };
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  answer.by = response.headers.get("x-blitzgw-instance");
  answer.split = response.headers.get("x-blitzgw-split");
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    take(JSON.parse(data), answer);
    grew();
  }
  throw new Refused(0, "the answer was cut off");
}

function take(chunk, answer) {
  if (chunk.error) {
    throw new Refused(chunk.error.code ?? 0, chunk.error.message ?? "", chunk.error.type ?? "");
  }
  answer.tokens = chunk.usage?.completion_tokens ?? answer.tokens;
  for (const { delta, finish_reason: finish } of chunk.choices) {
    answer.last = performance.now();
    answer.first ??= answer.last;
    answer.content += delta?.content ?? "";
    answer.finish = finish ?? answer.finish;
  }
}

/** Return an option as a number; undefined, which is not sent, where it is empty. */
function number(id) {
  return at(id).value === "" ? undefined : at(id).valueAsNumber;
}

function figures({ first, last, sent, tokens, finish, by, split }) {
  if (first === undefined) return "";
  const rate = tokens > 1 && last > first ? ((tokens - 1) * 1000) / (last - first) : null;
  return line(
    `first token after ${duration((first - sent) / 1000)}`,
    rate && `${rate.toFixed(1)} tokens/s`,
    tokens > 0 && many(tokens, "token"),
    finish === "length" && "as long as allowed",
    by && `by ${by}`,
    split && `split ${split}`,
  );
}

function told({ status, message, kind, retry }) {
  const wait = retry ? `try again in ${retry} s` : "";
  return line([status || "", kind].filter(Boolean).join(" "), message, wait);
}

function entry(role, content) {
  const text = make("p", "text", content);
  const note = make("p", "note");
  const element = make("div", `entry ${role}`, text, note);
  note.hidden = true;
  at("talk").append(element);
  scroll(true);
  return { element, text, note };
}

function grow(text, content) {
  const near = isNear();
  const node = text.firstChild ?? text.appendChild(document.createTextNode(""));
  if (content.length > node.length) node.appendData(content.slice(node.length));
  scroll(near);
}

function isNear() {
  const talk = at("talk");
  return talk.scrollHeight - talk.scrollTop - talk.clientHeight < NEAR_PX;
}

function scroll(wanted) {
  if (wanted) at("talk").scrollTop = at("talk").scrollHeight;
}
