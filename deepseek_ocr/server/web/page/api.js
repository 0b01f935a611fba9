// Requests to the server this page came from: the key, errors in plain words, lines as they come.

const JOBS = "v1/ocr/jobs";

/** Something to tell the person: `message` says what to do next; `status` is HTTP's, 0 without an answer. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const PLAIN = {
  401: "The server did not accept the API key. Check it and try again.",
  404: "The server no longer has this document. Choose it again.",
  413: "This file is larger than the server takes. Make it smaller or split it.",
  429: "The server is busy. Wait a moment, then try again.",
  503: "The server is starting or stopping. Try again in a moment.",
};

/** sessionStorage, or nothing where the browser forbids it: both are forgotten with the tab. */
function remembered(name) {
  return {
    get() {
      try { return sessionStorage.getItem(name) ?? ""; } catch { return ""; }
    },
    set(value) {
      try { sessionStorage.setItem(name, value); } catch { /* then it is not remembered */ }
    },
  };
}

export const key = remembered("deepseek-ocr-key");
export const lastJob = remembered("deepseek-ocr-job");
export const view = remembered("deepseek-ocr-view");

/** What to do with an error that is no answer: say so in `words`, unless it was us who stopped. */
const failing = (words) => (error) => { throw error.name === "AbortError" ? error : new Problem(words); };

async function request(path, options = {}) {
  const headers = new Headers(key.get() ? { Authorization: `Bearer ${key.get()}` } : {});
  const answer = await fetch(path, { ...options, headers, cache: "no-store" })
    .catch(failing("The server cannot be reached. Check that it is running, then try again."));
  if (!answer.ok) throw new Problem(await reasonOf(answer), answer.status);
  return answer;
}

async function reasonOf(answer) {
  const said = await answer.json().catch(() => null); // it may come from a proxy
  const message = said?.error?.message;
  if (typeof message === "string" && message) return message;
  return PLAIN[answer.status] ?? `The server answered ${answer.status}. Try again, or look into its log.`;
}

/** What may be chosen: tasks, presets, their defaults, whether a key is needed. */
export async function options() {
  return (await request("page/options.json")).json();
}

/** Hand a file in; what the server says of the new job. */
export async function submit(file, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.set(name, value);
  form.set("file", file, file.name || "pasted.png");
  return (await request(JOBS, { method: "POST", body: form })).json();
}

/** Cancel a job and have the server forget it. */
export async function forget(job) {
  await request(`${JOBS}/${encodeURIComponent(job)}`, { method: "DELETE", keepalive: true });
}

/** The job's events as they come, from its beginning. */
export async function* events(job, signal) {
  const answer = await request(`${JOBS}/${encodeURIComponent(job)}/events`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(failing("The connection to the server was lost."));
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.trim()) yield JSON.parse(line);
  }
}

/** The picture of a page as a blob. */
export async function picture(job, page) {
  return (await request(`${JOBS}/${encodeURIComponent(job)}/pages/${page}/image`)).blob();
}

/** A finished page's formatted text: lists of nodes, one for each region. */
export async function blocks(job, page) {
  return (await request(`${JOBS}/${encodeURIComponent(job)}/pages/${page}/blocks`)).json();
}

/** The finished document in a format, and the file name that the server gives it. */
export async function output(job, format) {
  const answer = await request(`${JOBS}/${encodeURIComponent(job)}/output/${format}`);
  const said = answer.headers.get("Content-Disposition") ?? "";
  const [, wide] = /filename\*=utf-8''([^;]+)/i.exec(said) ?? [];
  const [, plain] = /filename="([^"]+)"/.exec(said) ?? [];
  return { blob: await answer.blob(), name: wide ? decodeURIComponent(wide) : plain ?? `document.${format}` };
}
