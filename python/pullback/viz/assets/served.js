// Only in pages of `pullback serve`: notes go to the server, cards come from it. Both addresses lie on its own origin.

const queue = { text: null, busy: false };

// One request at a time, always with the latest notes; what could not be saved stays on the page and is said.
async function saveToServer(text) {
  queue.text = text;
  if (queue.busy) return;
  queue.busy = true;
  while (queue.text !== null) {
    const body = queue.text;
    queue.text = null;
    try {
      const answer = await fetch(graph.served.notes, { method: "POST", headers: { "Content-Type": "application/json" }, body: `{"qParams":${body}}` });
      if (!answer.ok) throw new Error((await answer.text()).slice(0, 200));
      document.documentElement.dataset.saved = body;
    } catch (error) {
      say(`Not saved: ${error.message}`);
    }
  }
  queue.busy = false;
}

// The card as an object, or null where there is none.
async function fetchCard(layer, feature) {
  const answer = await fetch(`${graph.served.cards}/${layer}/${feature}`);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}
