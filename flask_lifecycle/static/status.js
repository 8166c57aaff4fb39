// Keeps the status page as the process is: fetches it again, and changes of the one that is shown no more than differs.
//
// The server says when to ask again (data-again, in seconds) and holds the question until something happens or two
// seconds have passed. Without data-again there is no next time: the process, or the port that this page came from, is
// about to be gone, and a question to nobody would be an error in the console.

"use strict";

(() => {
  const LONGEST = 30; // seconds between two questions to a process that does not answer
  const PATIENCE = 15; // seconds: a question is held for two, and checks have their time besides

  const shown = document.getElementById("document");
  const live = document.getElementById("live");
  const pause = document.getElementById("pause");

  let paused = false;
  let over = false;
  let failures = 0;
  let heard = new Date();
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
    url.search = `seen=${shown.dataset.seen}`;
    const answer = await fetch(url, { cache: "no-store", credentials: "same-origin", redirect: "manual", signal });
    if (!answer.ok) throw new Error(`answered ${answer.status}`);
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  async function ask() {
    next = undefined;
    if (question || paused || over || document.hidden) return;
    const asked = (question = new AbortController());
    const patience = setTimeout(() => asked.abort(), PATIENCE * 1000);
    let page = null;
    try {
      page = await fetchPage(asked.signal);
    } catch {
      // It is told below.
    }
    clearTimeout(patience);
    if (question !== asked) return; // taken back
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
    heard = new Date();
    clearInterval(ticking);
    document.documentElement.classList.remove("stale");
    say("");
    proceed();
  }

  function proceed() {
    const again = shown.dataset.again;
    if (again === undefined) end(shown.dataset.last || "");
    else askIn(Number(again));
  }

  // -- no answer ------------------------------------------------------------------------------------------------------

  function lose() {
    failures += 1;
    if (failures === 1) {
      document.documentElement.classList.add("stale");
      clearInterval(ticking);
      ticking = setInterval(tick, 1000);
    }
    tick();
    askIn(Math.min(2 ** failures, LONGEST));
  }

  // Only the moment is read out, and once; the seconds, which change all the time, are there for the eye.
  function tick() {
    const seconds = Math.round((Date.now() - heard) / 1000);
    say(`No answer since ${heard.toISOString().slice(11, 19)} UTC`, `, for ${seconds} s`);
  }

  function say(words, figure = "") {
    if ((live.firstChild && live.firstChild.data) !== words) live.replaceChildren(...(words ? [words] : []));
    if (!figure) return;
    if (!live.lastElementChild) {
      live.append(document.createElement("span"));
      live.lastElementChild.setAttribute("aria-hidden", "true");
    }
    live.lastElementChild.textContent = figure;
  }

  function end(words) {
    over = true;
    pause.hidden = true;
    clearInterval(ticking);
    document.documentElement.classList.add("stale");
    say(words);
  }

  // -- the reader -----------------------------------------------------------------------------------------------------

  function stopAsking() {
    clearTimeout(next);
    if (question) question.abort(); // which, other than a failure, nobody logs
    question = null;
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (paused) stopAsking();
    else ask();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stopAsking();
    else ask();
  });
  addEventListener("pagehide", stopAsking);

  pause.hidden = false;
  proceed();
})();
