// Keeps the status page up to date: asks for it every two seconds while it is visible, and changes only what differs.

"use strict";

(() => {
  const PERIOD = 2; // seconds between an answer and the next question
  const LONGEST = 30; // seconds between two questions to a process that does not answer
  const TIMEOUT = 15; // seconds for an answer; checks take some of them

  const shown = document.getElementById("document");
  const live = document.getElementById("live");
  const pause = document.getElementById("pause");

  let paused = false;
  let over = false; // details are not shown any more
  let failures = 0;
  let answered = new Date();
  let question = null; // an AbortController while there is one
  let next; // the timers
  let ticking;

  // -- what differs ---------------------------------------------------------------------------------------------------

  const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") || node.id : "");
  const nameOf = (node) => `${node.nodeName} ${keyOf(node)}`;

  function patch(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    patchAttributes(old, fresh);
    patchChildren(old, fresh);
  }

  function patchAttributes(old, fresh) {
    const kept = (name) => name === "open" && old.localName === "details"; // the reader's, and not the server's
    for (const { name, value } of fresh.attributes) {
      if (!kept(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!kept(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
  }

  // Nodes that stay are not moved unless their order has changed: moving takes away focus and selection.
  function patchChildren(old, fresh) {
    const wanted = new Set([...fresh.childNodes].filter(keyOf).map(nameOf));
    const there = new Map();
    for (const child of [...old.childNodes]) {
      if (!keyOf(child)) continue;
      if (wanted.has(nameOf(child))) there.set(nameOf(child), child);
      else child.remove();
    }
    let at = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      let match = null;
      if (keyOf(child)) {
        match = there.get(nameOf(child)) || null;
        there.delete(nameOf(child));
        if (match) while (at && at !== match && !keyOf(at)) at = drop(at);
      } else if (at && !keyOf(at) && at.nodeName === child.nodeName) {
        match = at;
      }
      if (!match) {
        old.insertBefore(document.importNode(child, true), at);
        continue;
      }
      if (match === at) at = at.nextSibling;
      else old.insertBefore(match, at);
      patch(match, child);
    }
    while (at) at = drop(at);
  }

  function drop(node) {
    const after = node.nextSibling;
    node.remove();
    return after;
  }

  // -- asking ---------------------------------------------------------------------------------------------------------

  async function fetchPage(signal) {
    // Built from its parts: an address with a user and a password in it cannot be fetched.
    const url = new URL(document.body.dataset.feed, location.origin + location.pathname);
    const answer = await fetch(url, { cache: "no-store", credentials: "same-origin", redirect: "manual", signal });
    if (!answer.ok) throw new Error(`answered ${answer.status}`);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  async function ask() {
    if (question || paused || over || document.visibilityState === "hidden") return;
    const asked = (question = new AbortController());
    const timeout = setTimeout(() => asked.abort(), TIMEOUT * 1000);
    const page = await fetchPage(asked.signal).catch(() => null);
    clearTimeout(timeout);
    if (question !== asked) return; // the reader has paused or left the page
    question = null;
    if (page) show(page);
    else lose();
  }

  function askIn(seconds) {
    clearTimeout(next);
    next = setTimeout(ask, seconds * 1000);
  }

  function show(page) {
    const fresh = page.getElementById("document");
    if (!fresh) {
      end("Details are not shown any more. Reload the page to sign in.");
      return;
    }
    patch(shown, fresh);
    for (const id of ["asof", "icon"]) patch(document.getElementById(id), page.getElementById(id));
    if (document.title !== page.title) document.title = page.title;
    failures = 0;
    answered = new Date();
    clearInterval(ticking);
    document.documentElement.classList.remove("stale");
    say("");
    askIn(PERIOD);
  }

  // -- no answer ------------------------------------------------------------------------------------------------------

  function lose() {
    failures += 1;
    if (failures === 1) {
      document.documentElement.classList.add("stale");
      ticking = setInterval(tick, 1000);
    }
    tick();
    askIn(Math.min(2 ** failures, LONGEST));
  }

  // A screen reader reads the sentence once; the seconds are for the eye.
  function tick() {
    const seconds = Math.round((Date.now() - answered) / 1000);
    const gone = "stopping" in shown.dataset ? "The process has stopped, or closed this port. No" : "No";
    say(`${gone} answer since ${answered.toISOString().slice(11, 19)} UTC`, `, for ${seconds} s`);
  }

  function say(text, figure = "") {
    if ((live.firstChild && live.firstChild.data) !== text) live.replaceChildren(...(text ? [text] : []));
    if (!figure) return;
    if (!live.lastElementChild) {
      live.append(document.createElement("span"));
      live.lastElementChild.setAttribute("aria-hidden", "true");
    }
    live.lastElementChild.textContent = figure;
  }

  function end(text) {
    over = true;
    pause.hidden = true;
    document.documentElement.classList.add("stale");
    say(text);
  }

  // -- the reader -----------------------------------------------------------------------------------------------------

  function stopAsking() {
    clearTimeout(next);
    if (question) question.abort();
    question = null;
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) stopAsking();
    else ask();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") stopAsking();
    else ask();
  });
  addEventListener("pagehide", stopAsking);

  pause.hidden = false;
  askIn(PERIOD);
})();
