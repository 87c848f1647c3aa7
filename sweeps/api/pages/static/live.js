// What the server has rendered anew takes the place of what it was: a part by its id, an item of a list by its id within
// the list. Nothing else of the page is touched, so focus, scroll and what was unfolded stay.

const known = new Map(); // how each part was sent last: what the page made of it since is no change
for (const part of document.querySelectorAll("[data-part]")) known.set(part.id, part.outerHTML);

export async function get(path) {
  const answer = await fetch(path, { headers: { Accept: "text/html" } });
  if (answer.status === 401) throw new Error("You are not logged in any more: reload the page.");
  const text = await answer.text();
  const page = new DOMParser().parseFromString(text, "text/html");
  if (!answer.ok) throw new Error(page.getElementById("problem")?.textContent ?? `The server answers ${answer.status}.`);
  return page;
}

// Returns the parts and items that are new or changed.
export function merge(page) {
  const changed = [];
  for (const list of page.querySelectorAll("[data-list]")) {
    const home = document.getElementById(list.id);
    if (!home) continue;
    const fresh = [...list.children].filter((item) => item.id && !document.getElementById(item.id));
    for (const item of list.dataset.list === "prepend" ? fresh.reverse() : fresh) {
      known.set(item.id, item.outerHTML);
      home[list.dataset.list](item);
      changed.push(item);
    }
  }
  for (const part of page.querySelectorAll("[data-part]")) {
    const old = document.getElementById(part.id);
    const html = part.outerHTML;
    if (!old || known.get(part.id) === html) continue;
    known.set(part.id, html);
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const within = focused ? [...old.querySelectorAll("button, summary, a, [tabindex]")].indexOf(focused) : -1;
    old.replaceWith(part);
    if (focused) (part.querySelectorAll("button, summary, a, [tabindex]")[within] ?? part.querySelector("button, a"))?.focus();
    changed.push(part);
  }
  return changed;
}

// Calls `work` when asked to, at most once in `pause` milliseconds, and never twice at a time.
export function throttled(work, pause) {
  let running = false;
  let again = false;
  return async function ask() {
    if (running) {
      again = true;
      return;
    }
    running = true;
    await work();
    await new Promise((done) => setTimeout(done, pause));
    running = false;
    if (again) {
      again = false;
      ask();
    }
  };
}
