// Asking this node: the reader's key goes along, answers come as they are written.

const KEPT = "blitzgw-api-key"; // in this tab's storage, which other origins cannot read

/** What a node answered instead of what was asked for; status 0: nothing that could be read. */
export class Refused extends Error {
  constructor(status, message, kind = "", retry = 0) {
    super(message);
    Object.assign(this, { status, kind, retry });
  }
}

let sent = kept();

/** Return the key that is sent, empty: none. */
export function key() {
  return sent;
}

/** Send this key from now on. */
export function useKey(value) {
  sent = value;
  try {
    sessionStorage.setItem(KEPT, value);
  } catch {
    // a browser that keeps nothing: it lasts until the page is left
  }
}

function kept() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}

/** Return the answer to a request; throws Refused, AbortError. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "this node does not answer");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const retry = Number(response.headers.get("Retry-After")) || 0;
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // a proxy's page, perhaps: its status says enough
  }
  const message = told?.message ?? `${response.statusText || "no reason was given"}`;
  return new Refused(response.status, String(message), String(told?.type ?? ""), retry);
}

/** Yield the data of each event of a stream; what has not ended by an empty line is none. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
  }
}
