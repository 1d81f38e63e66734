// The gallery page. Images are numbers; all that is remembered lives on the server.
const $ = (id) => document.getElementById(id);
const COLOURS = ["#3566c4", "#bf5518", "#278245", "#b03a76", "#7a52c7", "#8a6d1b", "#16828c", "#c23b3b", "#5c6f2a", "#9a4fb0", "#47657d", "#a5522d"];
const GREY = "#77818c";
const GAP = 6;

let state = null; // what /api/state said last
let failed = ""; // what it said that went wrong
let order = new Uint32Array(0), shown = order; // all images in the order chosen, and those of them that are shown
let cosines = new Map(); // by number, of the last search
let labels = new Int32Array(0), guesses = new Int32Array(0), sure = new Float32Array(0);
let selected = new Set(), at = -1, anchor = -1; // numbers; the place in `shown` of the focus and of a range's beginning
const facts = new Map();

// ---------------------------------------------------------------- the server
async function ask(path, body, kind = "application/json") {
  const options = body === undefined ? {} : { method: "POST", headers: { "x-selfsight": "1", "x-started": state?.started ?? "", "content-type": kind },
    body: kind === "application/json" ? JSON.stringify(body) : body };
  let answer;
  try { answer = await fetch(path, options); }
  catch { notice("The server does not answer; is selfsight gallery still running?"); throw new Error("no server"); }
  if (!answer.ok) {
    const text = await answer.text();
    let words = text;
    try { const detail = JSON.parse(text).detail; words = typeof detail === "string" ? detail : detail[0].msg; } catch { /* not JSON */ }
    notice(words);
    throw new Error(words);
  }
  return answer;
}
const json = async (path, body, kind) => (await ask(path, body, kind)).json();
const numbers = async (path, Kind) => new Kind(await (await ask(path)).arrayBuffer());

function notice(words, good = false) { // in the panel, and over an enlarged image
  for (const place of document.querySelectorAll(".notice")) {
    place.textContent = words;
    place.classList.toggle("good", good);
  }
  if (words) $("side").classList.add("open");
}

// ---------------------------------------------------------------- classes
const classOf = (id) => state.classes.find((found) => found.id === id);
const colourOf = (id) => (id < 0 ? GREY : COLOURS[(id - 1) % COLOURS.length]);

function element(tag, { attributes = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function dot(id) {
  const made = element("span", { className: "dot" });
  made.style.background = colourOf(id);
  return made;
}

let drawnClasses = "";
function drawClasses() {
  const list = $("classes"), now = JSON.stringify(state.classes);
  if (now === drawnClasses) return; // a press on a button that is replaced meanwhile would be lost
  drawnClasses = now;
  const rows = state.classes.map((found, place) => {
    const key = place < 9 ? String(place + 1) : "";
    const give = element("button", { type: "button", className: "give", title: key && `Key ${key}`,
      attributes: { "aria-label": `Label the selection ${found.name}` }, onclick: () => give_(found.id) },
      dot(found.id), element("span", { textContent: found.name }), element("span", { className: "quiet", textContent: `${found.count} ${key && `[${key}]`}` }));
    const rename = element("button", { type: "button", className: "small", textContent: "✎", attributes: { "aria-label": `Rename ${found.name}` },
      onclick: async () => { const name = prompt("Name of the class", found.name); if (name) await change(`/api/classes/${found.id}`, { name }); } });
    const remove = element("button", { type: "button", className: "small", textContent: "×", attributes: { "aria-label": `Remove ${found.name}` },
      onclick: () => change(`/api/classes/${found.id}/remove`, {}) });
    return element("li", {}, give, rename, remove);
  });
  const focused = list.querySelector(":focus-visible")?.getAttribute("aria-label"); // not after a click: Enter would press again
  list.replaceChildren(...rows);
  if (focused) list.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus(); // by keys one goes on where one is
  options($("show"), [["all", "all"], ["none", "without a label"], ["any", "with a label"],
    ...state.classes.map((c) => [`is:${c.id}`, c.name]), ...state.classes.map((c) => [`guess:${c.id}`, `predicted ${c.name}`])]);
  options($("accept-class"), state.classes.map((c) => [String(c.id), c.name]));
}

function options(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, words]) => element("option", { value, textContent: words })));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

function drawState() {
  const now = Object.values(state.failures).join(" ");
  if (now !== failed || (now && !$("notice").textContent)) notice(now);
  failed = now;
  if (state.failures.map) $("map-words").textContent = state.failures.map;
  const name = state.data.replace(/\/+$/, "").split("/").pop();
  $("title").textContent = name;
  document.title = `${name} · selfsight`;
  drawClasses();
  $("undo").disabled = !state.undo;
  $("redo").disabled = !state.redo;
  $("sort").querySelector('[value="date"]').disabled = !state.dates;
  $("sort").querySelector('[value="cluster"]').disabled = !state.map;
  const a = state.accuracy, percent = (x) => `${Math.round(100 * x)} %`;
  const ready = state.classes.filter((c) => c.count).length > 1;
  if (a) {
    $("accuracy").replaceChildren(element("b", { textContent: percent(a.value) }),
      ` right (95 %: ${percent(a.low)} to ${percent(a.high)}), each label predicted from the others, ${a.count} labels. If you had guessed the commonest: ${percent(a.guess)}.`);
  } else {
    $("accuracy").textContent = ready ? "A classifier predicts; from 10 labels on its accuracy is measured." : "Label images of two classes, and a classifier appears.";
  }
  $("accept").hidden = !ready;
  caption();
  countAccepted();
}

let timesGiven = 0; // how often a class was given
async function give_(id) {
  const grid = !$("page-grid").hidden && at >= 0 && shown.length;
  const images = $("large").open ? [enlarged] : selected.size ? [...selected] : grid ? [shown[at]] : [];
  if (!images.length) return notice("Select images first.");
  if (images.length > 1 && !$("page-look").hidden) return notice("These images can't be seen here; go to the grid or the map.");
  if (images.length === 1) onward(images[0], 1); // at once: one labels faster than a server answers
  timesGiven++;
  await change("/api/label", { images, class: id });
}

function onward(number, by) { // to the image before or after this one; only on the grid have images an order
  const place = $("page-grid").hidden ? -1 : shown.indexOf(number);
  if (place < 0 || shown[place + by] === undefined) return;
  move(place + by);
  if ($("large").open) enlarge(shown[at]);
}

let saving = Promise.resolve(); // changes are saved in the order in which they were made
function change(path, body) {
  notice("");
  const saved = saving.then(() => json(path, body));
  saving = saved.catch(() => {});
  return saved.then(async (done) => { await refresh(); return done; });
}

// ---------------------------------------------------------------- what has changed
let refreshing = null, again = false;
function refresh() {
  if (refreshing) { again = true; return refreshing; }
  refreshing = (async () => {
    do {
      again = false;
      const [now, given, said] = await Promise.all([json("/api/state"), numbers("/api/labels", Int32Array), ask("/api/predictions")]);
      if (state && now.started !== state.started) { location.reload(); return; } // another server: numbers mean other images
      const buffer = await said.arrayBuffer(), n = buffer.byteLength / 8;
      guesses = new Int32Array(buffer, 0, n);
      sure = new Float32Array(buffer, 4 * n, n);
      labels = given;
      const had = state?.map;
      state = now;
      drawState();
      filter(false);
      if (state.map && (!had || !places)) await loadMap();
      drawMap();
    } while (again);
  })().finally(() => { refreshing = null; });
  return refreshing;
}

let source = null;
function listen() { // in a tab that is seen only: browsers open six connections to a host, for all tabs together
  if (document.hidden) { source?.close(); source = null; return; }
  source ??= new EventSource("/api/events"); // which begins with how things are now
  source.onmessage = () => refresh();
}

// ---------------------------------------------------------------- the grid
function filter(reset = true) {
  const wish = $("show").value, [kind, id] = wish.split(":");
  const keep = { all: () => true, none: (i) => labels[i] < 0, any: (i) => labels[i] >= 0, is: (i) => labels[i] === +id,
    guess: (i) => labels[i] < 0 && guesses[i] === +id }[kind];
  const focused = shown[at], begun = shown[anchor], before = shown;
  shown = wish === "all" ? order : order.filter(keep);
  if (reset) { at = shown.length ? 0 : -1; anchor = -1; $("grid").scrollTop = 0; }
  else { // images come and go with their labels: the focus stays on its own
    const place = shown.indexOf(focused);
    at = place < 0 ? Math.min(at, shown.length - 1) : place;
    anchor = shown.indexOf(begun);
  }
  if (!$("page-grid").hidden && selected.size) { // a key must not label what is no longer seen
    const there = new Set(shown), was = new Set(before);
    const left = [...selected].filter((i) => there.has(i) || !was.has(i)); // what was chosen elsewhere stays
    if (left.length < selected.size) { selected = new Set(left); showSelection(); }
  }
  $("shown").textContent = `${shown.length.toLocaleString("en")} image${shown.length === 1 ? "" : "s"}` + (state.skipped ? `, ${state.skipped} cannot be read` : "");
  drawGrid();
}

let wishes = 0; // for what the grid shows: of several the last counts, in whatever order the answers come
async function wished(answer) {
  const wish = ++wishes, found = await answer;
  return wish === wishes ? found : null;
}

async function sortBy(by) {
  const found = await wished(numbers(`/api/order?by=${by}`, Uint32Array));
  if (!found) return;
  cosines = new Map();
  for (const value of ["similar", "next"]) $("sort").querySelector(`[value="${value}"]`).disabled = true;
  order = found;
  filter();
}

function showOnly(list, value, words) {
  order = Uint32Array.from(list);
  const option = $("sort").querySelector(`[value="${value}"]`);
  option.disabled = false;
  option.textContent = words;
  $("sort").value = value;
  $("show").value = "all";
  page("grid");
  filter();
}

async function similar(number) {
  const found = await wished(json(`/api/similar/${number}?k=200`));
  if (!found) return;
  cosines = new Map(found);
  showOnly(found.map(([i]) => i), "similar", "by similarity");
}

async function search(file) {
  const found = await wished(json("/api/search", file, "application/octet-stream"));
  if (!found) return;
  notice("");
  cosines = new Map(found);
  showOnly(found.map(([i]) => i), "similar", "by similarity");
}

const tiles = new Map(); // by place
let columns = 1, step = 1;
function measureGrid() {
  const side = +$("zoom").value, width = $("grid").clientWidth - 2 * parseFloat(getComputedStyle($("grid")).paddingLeft);
  columns = Math.max(1, Math.floor((width + GAP) / (side + GAP)));
  step = (width + GAP) / columns;
}

let waiting = false;
function drawGrid(fresh = false) {
  if (fresh) { for (const tile of tiles.values()) tile.remove(); tiles.clear(); }
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; layGrid(); });
}

function layGrid() {
  measureGrid();
  const grid = $("grid"), rows = Math.ceil(shown.length / columns);
  $("canvas").style.height = `${rows * step}px`;
  const first = Math.max(0, Math.floor(grid.scrollTop / step) - 1) * columns;
  const last = Math.min(shown.length, (Math.ceil((grid.scrollTop + grid.clientHeight) / step) + 1) * columns);
  for (const [place, tile] of tiles) if (place < first || place >= last) { tile.remove(); tiles.delete(place); }
  for (let place = first; place < last; place++) {
    let tile = tiles.get(place);
    if (!tile || tile.number !== shown[place]) { tile?.remove(); tile = makeTile(place); tiles.set(place, tile); $("canvas").append(tile); }
    const side = step - GAP;
    Object.assign(tile.style, { left: `${(place % columns) * step}px`, top: `${Math.floor(place / columns) * step}px`, width: `${side}px`, height: `${side}px` });
    dress(tile, place);
  }
  const focus = tiles.get(at);
  if (focus) $("grid").setAttribute("aria-activedescendant", focus.id); else $("grid").removeAttribute("aria-activedescendant");
  need([...tiles.values()].map((tile) => tile.number));
}

function makeTile(place) {
  const number = shown[place];
  const image = element("img", { alt: "", loading: "eager", decoding: "async", draggable: false, src: thumb(number) });
  const tile = element("div", { className: "tile", id: `tile-${number}`, attributes: { role: "option" } }, image);
  tile.number = number;
  tile.onclick = (event) => pick(shown.indexOf(number), event);
  tile.ondblclick = () => enlarge(number);
  return tile;
}

const thumb = (number) => `/thumb/${number}?side=${+$("zoom").value > 128 ? 320 : 160}&v=${state.started}`;

function dress(tile, place) {
  const number = tile.number, label = labels[number], guess = guesses[number];
  tile.setAttribute("aria-selected", selected.has(number));
  tile.setAttribute("aria-setsize", shown.length);
  tile.setAttribute("aria-posinset", place + 1);
  tile.classList.toggle("at", place === at);
  const known = facts.get(number), name = known ? known.name : `image ${number}`;
  const id = label >= 0 ? label : guess, words = id >= 0 && classOf(id) ? classOf(id).name : "";
  const said = label >= 0 ? words : words && `${words} ${Math.round(100 * sure[number])} %`;
  tile.setAttribute("aria-label", name + (label >= 0 ? `, labelled ${words}` : words && `, predicted ${said}`));
  tile.title = name;
  tile.querySelectorAll(".mark, .cosine").forEach((mark) => mark.remove());
  if (words) {
    const mark = element("span", { className: label >= 0 ? "mark" : "mark guess", textContent: said });
    mark.style.background = colourOf(id);
    tile.append(mark);
  }
  if (cosines.has(number)) tile.append(element("span", { className: "cosine", textContent: cosines.get(number).toFixed(2) }));
}

let needed = new Set(), needing = null;
function need(list) {
  for (const number of list) if (!facts.has(number)) needed.add(number);
  if (!needed.size || needing) return;
  needing = setTimeout(async () => {
    const some = [...needed].slice(-400);
    needed = new Set();
    needing = null;
    for (const found of await json(`/api/items?ids=${some.join(",")}`)) facts.set(found.id, found);
    for (const [place, tile] of tiles) dress(tile, place);
    caption();
  }, 60);
}

function pick(place, event = {}) {
  const number = shown[place];
  if (event.shiftKey && anchor >= 0) {
    selected = new Set(event.ctrlKey || event.metaKey ? selected : []);
    for (let i = Math.min(anchor, place); i <= Math.max(anchor, place); i++) selected.add(shown[i]);
  } else if (event.ctrlKey || event.metaKey) {
    if (!selected.delete(number)) selected.add(number);
    anchor = place;
  } else {
    selected = new Set([number]);
    anchor = place;
  }
  at = place;
  $("grid").focus({ preventScroll: true });
  showSelection();
  drawGrid();
}

function move(place, range = false) {
  if (!shown.length) return;
  at = Math.max(0, Math.min(shown.length - 1, place));
  const grid = $("grid"), top = Math.floor(at / columns) * step;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + step > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + step - grid.clientHeight;
  if (range && anchor >= 0) pick(at, { shiftKey: true }); else pick(at);
}

function showSelection() {
  $("selection").textContent = selected.size > 1 ? `${selected.size.toLocaleString("en")} images selected` : "";
  const only = selected.size === 1 ? [...selected][0] : -1;
  $("one").hidden = only < 0;
  if (only >= 0) showOne(only);
  drawMap();
}

let oneWish = 0;
async function showOne(number) {
  const wish = ++oneWish;
  $("one-picture").replaceWith(element("img", { id: "one-picture", alt: "", src: `/thumb/${number}?side=320&v=${state.started}` })); // anew: the old picture would stay
  $("one-words").textContent = facts.get(number)?.name ?? "";
  if (!facts.has(number)) for (const found of await json(`/api/items?ids=${number}`)) facts.set(found.id, found);
  if (wish !== oneWish) return;
  const found = facts.get(number);
  $("one-picture").alt = found.name;
  $("one-words").textContent = [found.name, `${found.width} × ${found.height}`, found.taken].filter(Boolean).join(" · ");
  const near = await json(`/api/similar/${number}?k=13`);
  if (wish !== oneWish) return;
  $("one-near").replaceChildren(...near.filter(([i]) => i !== number).slice(0, 12).map(([i, cosine]) => element("button", { type: "button",
    title: cosine.toFixed(2), attributes: { "aria-label": `Similar image ${i}, ${cosine.toFixed(2)}` }, onclick: () => { selected = new Set([i]); at = shown.indexOf(i); showSelection(); drawGrid(); } },
    element("img", { alt: "", src: `/thumb/${i}?side=96&v=${state.started}` }))));
}

let enlarged = -1; // number
function enlarge(number) {
  enlarged = number;
  $("large").querySelector("img").replaceWith(element("img", { src: `/image/${number}?v=${state.started}` })); // anew: the old picture would stay
  caption();
  need([number]);
  if (!$("large").open) $("large").showModal();
}

function caption() { // of the enlarged image: its name and its class
  const name = facts.get(enlarged)?.name ?? "", label = classOf(labels[enlarged])?.name;
  $("large").querySelector("img").alt = name;
  $("large").querySelector("p").textContent = [name, label].filter(Boolean).join(" · ");
}

// ---------------------------------------------------------------- the map
let places = null, cluster = null, view = { x: 0, y: 0, scale: 1 }, loop = null, drag = null;
async function loadMap() {
  const buffer = await (await ask("/api/map")).arrayBuffer(), n = buffer.byteLength / 12;
  cluster = new Int32Array(buffer, 0, n);
  places = new Float32Array(buffer, 4 * n, 2 * n);
  $("map-words").textContent = "Draw a lasso around images to select them; wheel or pinch zooms, arrows and + − as well.";
}

const pointers = new Map();
function project(i) {
  const canvas = $("map"), side = Math.min(canvas.clientWidth, canvas.clientHeight) - 30;
  const ox = (canvas.clientWidth - side) / 2, oy = (canvas.clientHeight - side) / 2;
  return [(ox + places[2 * i] * side) * view.scale + view.x, (oy + places[2 * i + 1] * side) * view.scale + view.y];
}

function drawMap() {
  if (!places || $("page-map").hidden) return;
  const canvas = $("map"), ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const by = $("colour").value, n = cluster.length, size = Math.max(2, Math.min(9, (n > 20000 ? 2 : n > 3000 ? 3 : 5) * Math.sqrt(view.scale)));
  const ids = by === "cluster" ? cluster : by === "label" ? labels : labels.map((label, i) => (label >= 0 ? label : guesses[i]));
  const shade = (id) => (by === "cluster" ? COLOURS[id] ?? GREY : colourOf(id)); // clusters are numbered by size
  const heaps = new Map();
  for (let i = 0; i < n; i++) { if (!heaps.has(ids[i])) heaps.set(ids[i], []); heaps.get(ids[i]).push(i); }
  const grey = ([id]) => shade(id) === GREY; // those below the others
  for (const [id, members] of [...heaps].sort((a, b) => grey(b) - grey(a) || a[0] - b[0])) {
    pen.fillStyle = shade(id);
    pen.globalAlpha = grey([id]) ? 0.45 : 0.85;
    for (const i of members) { const [x, y] = project(i); pen.fillRect(x - size / 2, y - size / 2, size, size); }
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  if (selected.size < 5000) for (const i of selected) { const [x, y] = project(i); pen.strokeRect(x - size / 2 - 1.5, y - size / 2 - 1.5, size + 3, size + 3); }
  if (loop) {
    pen.beginPath();
    loop.forEach(([x, y], place) => (place ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.globalAlpha = 0.15; pen.fillStyle = pen.strokeStyle; pen.fill();
    pen.globalAlpha = 1; pen.stroke();
  }
}

function within(polygon, x, y) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

function nearestPoint(x, y, reach = 12) {
  let best = -1, least = reach * reach;
  for (let i = 0; i < cluster.length; i++) {
    const [px, py] = project(i), d = (px - x) ** 2 + (py - y) ** 2;
    if (d < least) { least = d; best = i; }
  }
  return best;
}

function zoomAt(x, y, factor) {
  const scale = Math.max(1, Math.min(60, view.scale * factor)), real = scale / view.scale;
  view = { scale, x: x - (x - view.x) * real, y: y - (y - view.y) * real };
  drawMap();
}

function mapEvents() {
  const canvas = $("map"), spot = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.onwheel = (event) => { event.preventDefault(); zoomAt(...spot(event), Math.exp(-event.deltaY / 400)); };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, spot(event));
    if (pointers.size === 2) { loop = null; drag = null; return; }
    if ($("lasso").getAttribute("aria-pressed") === "true" && !event.altKey) loop = [spot(event)]; else drag = spot(event);
  };
  canvas.onpointermove = (event) => {
    if (!places) return;
    const [x, y] = spot(event);
    if (pointers.size === 2 && pointers.has(event.pointerId)) {
      const before = [...pointers.values()];
      pointers.set(event.pointerId, [x, y]);
      const after = [...pointers.values()], far = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
      zoomAt((after[0][0] + after[1][0]) / 2, (after[0][1] + after[1][1]) / 2, far(after) / Math.max(far(before), 1));
    } else if (loop) { loop.push([x, y]); drawMap(); }
    else if (drag) { view = { ...view, x: view.x + x - drag[0], y: view.y + y - drag[1] }; drag = [x, y]; drawMap(); }
    else if (event.pointerType !== "touch") hover(x, y);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    pointers.delete(event.pointerId);
    if (loop && places) {
      const [x, y] = spot(event), far = Math.max(...loop.map(([a, b]) => Math.hypot(a - loop[0][0], b - loop[0][1])));
      if (far < 6) { const i = nearestPoint(x, y); selected = new Set(i < 0 ? [] : [i]); }
      else {
        const caught = new Set(event.ctrlKey || event.metaKey ? selected : []);
        for (let i = 0; i < cluster.length; i++) if (within(loop, ...project(i))) caught.add(i);
        selected = caught;
        notice(`${selected.size} images in the lasso; label them with a class's button or key.`, true);
      }
      showSelection();
    }
    loop = drag = null;
    drawMap();
  };
  canvas.onpointerleave = () => { $("hover").hidden = true; };
  canvas.onkeydown = (event) => {
    const far = 60, moves = { ArrowLeft: [far, 0], ArrowRight: [-far, 0], ArrowUp: [0, far], ArrowDown: [0, -far] };
    if (moves[event.key]) { view = { ...view, x: view.x + moves[event.key][0], y: view.y + moves[event.key][1] }; drawMap(); event.preventDefault(); }
    if (event.key === "+" || event.key === "-") zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, event.key === "+" ? 1.4 : 1 / 1.4);
  };
}

let hovered = -1;
function hover(x, y) {
  const i = nearestPoint(x, y), box = $("hover"), canvas = $("map");
  box.hidden = i < 0;
  if (i < 0) return;
  box.style.left = `${Math.max(0, Math.min(x + 14, canvas.clientWidth - 190))}px`;
  box.style.top = `${Math.max(0, Math.min(y + 14, canvas.clientHeight - 210))}px`;
  if (i === hovered) return;
  hovered = i;
  box.querySelector("img").src = `/thumb/${i}?side=160&v=${state.started}`;
  const words = () => { if (hovered === i) box.querySelector("span").textContent = facts.get(i)?.name ?? ""; };
  words();
  if (!facts.has(i)) json(`/api/items?ids=${i}`).then(([found]) => { facts.set(i, found); words(); });
}

// ---------------------------------------------------------------- duplicates
let copiesAsked = false;
async function loadCopies() {
  if (copiesAsked) return;
  copiesAsked = true;
  const groups = await json("/api/duplicates").catch((error) => { copiesAsked = false; throw error; }), words = { exact: "The same file", near: "The same picture", burst: "Of one moment" };
  $("copies-words").textContent = groups.length ? `${groups.length} groups; nothing is deleted.` : "No image is there twice.";
  $("copies").replaceChildren(...groups.slice(0, 500).map((group) => element("div", { className: "group" },
    element("p", { textContent: `${words[group.kind]}, ${group.images.length} times (similarity ${group.similarity.toFixed(2)})` }),
    element("div", {}, ...group.images.slice(0, 40).map((i) => element("button", { type: "button", attributes: { "aria-label": `Image ${i}` },
      onclick: () => { selected = new Set([i]); showSelection(); } }, element("img", { alt: "", loading: "lazy", src: `/thumb/${i}?side=160&v=${state.started}` })))))));
}

// ---------------------------------------------------------------- the rest of the page
function page(name) {
  for (const tab of document.querySelectorAll(".tab")) tab.setAttribute("aria-pressed", tab.dataset.page === name);
  for (const part of document.querySelectorAll(".page")) part.hidden = part.id !== `page-${name}`;
  if (name === "grid") drawGrid();
  if (name === "map") drawMap();
  if (name === "copies") loadCopies();
  if (name === "look" && !$("report").src) $("report").src = "/look";
}

function countAccepted() {
  const id = +$("accept-class").value, from = +$("accept-from").value / 100;
  let count = 0;
  for (let i = 0; i < guesses.length; i++) if (labels[i] < 0 && guesses[i] === id && sure[i] >= from) count++;
  $("accept-count").textContent = `${count.toLocaleString("en")} images`;
  $("accept-go").disabled = !count || !$("accept-from").checkValidity();
}

async function next() {
  const before = timesGiven, found = await wished(json("/api/next"));
  if (!found || timesGiven !== before) return; // whoever labels meanwhile stays at these images
  if (!found.length) return notice("Every image has a label.", true);
  cosines = new Map();
  selected = new Set();
  showOnly(found, "next", "next to label");
  move(0);
}

function events() {
  for (const tab of document.querySelectorAll(".tab")) tab.onclick = () => page(tab.dataset.page);
  $("sort").onchange = () => sortBy($("sort").value);
  $("show").onchange = () => filter();
  $("zoom").oninput = () => drawGrid(true);
  $("grid").onscroll = () => drawGrid();
  new ResizeObserver(() => { drawGrid(); drawMap(); }).observe(document.querySelector("main"));
  $("colour").onchange = drawMap;
  $("lasso").onclick = () => $("lasso").setAttribute("aria-pressed", $("lasso").getAttribute("aria-pressed") !== "true");
  $("home").onclick = () => { view = { x: 0, y: 0, scale: 1 }; drawMap(); };
  $("add").onsubmit = async (event) => {
    event.preventDefault();
    const name = $("add-name").value;
    $("add-name").value = "";
    try { await change("/api/classes", { name }); }
    catch { if (!$("add-name").value) $("add-name").value = name; } // refused: to be mended, not typed again
  };
  $("clear").onclick = () => give_(null);
  $("undo").onclick = () => change("/api/undo", {});
  $("redo").onclick = () => change("/api/redo", {});
  $("next").onclick = next;
  $("one-similar").onclick = () => similar([...selected][0]);
  $("one-large").onclick = () => enlarge([...selected][0]);
  $("large-close").onclick = () => $("large").close();
  $("accept-class").onchange = $("accept-from").oninput = countAccepted;
  $("accept-go").onclick = async () => {
    const done = await change("/api/accept", { class: +$("accept-class").value, confidence: +$("accept-from").value / 100 });
    notice(`${done.changed} images labelled; Undo takes them back.`, true);
  };
  $("folders").onclick = async () => notice(`Folders: ${(await json("/api/export/folders", {})).path}`, true);
  $("classifier").onclick = async () => notice(`Classifier: selfsight predict ${(await json("/api/export/classifier", {})).path} IMAGES`, true);
  $("upload").onchange = () => { if ($("upload").files[0]) search($("upload").files[0]); $("upload").value = ""; };
  $("panel-toggle").onclick = () => $("panel-toggle").setAttribute("aria-expanded", $("side").classList.toggle("open"));
  $("theme").onclick = () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("selfsight-theme", root.dataset.theme);
    drawMap();
  };
  mapEvents();
  let depth = 0;
  ondragenter = (event) => { if (event.dataTransfer?.types.includes("Files")) { depth++; $("drop").hidden = false; } };
  ondragleave = () => { if (depth && !--depth) $("drop").hidden = true; };
  ondragover = (event) => event.preventDefault();
  ondrop = (event) => {
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    if (event.dataTransfer.files[0]) search(event.dataTransfer.files[0]);
  };
  onkeydown = keys;
}

function keys(event) {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.altKey) return;
  const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey, large = $("large").open;
  if (command && key === "z") { event.preventDefault(); (event.shiftKey ? $("redo") : $("undo")).click(); return; }
  if (command && key === "a" && !large && !$("page-grid").hidden) { event.preventDefault(); selected = new Set(shown); showSelection(); drawGrid(); return; }
  if (command) return;
  if (/^[1-9]$/.test(key) && state.classes[key - 1]) { event.preventDefault(); give_(state.classes[key - 1].id); return; }
  const actions = { 0: () => give_(null), u: () => $("undo").click(), ...(large ? { arrowleft: () => onward(enlarged, -1), arrowright: () => onward(enlarged, 1) }
    : { n: next, s: () => selected.size === 1 && similar([...selected][0]), escape: () => { selected = new Set(); showSelection(); drawGrid(); } }) };
  if (actions[key]) { event.preventDefault(); actions[key](); return; }
  if (large || $("page-grid").hidden || event.target.closest("aside, header")) return;
  const rows = Math.max(1, Math.floor($("grid").clientHeight / step));
  const moves = { arrowright: at + 1, arrowleft: at - 1, arrowdown: at + columns, arrowup: at - columns, home: 0, end: shown.length - 1,
    pagedown: at + rows * columns, pageup: at - rows * columns };
  if (key in moves) { event.preventDefault(); move(moves[key], event.shiftKey); }
  else if (key === "enter" && at >= 0) { event.preventDefault(); enlarge(shown[at]); }
}

async function start() {
  const theme = localStorage.getItem("selfsight-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  events();
  [state, order] = await Promise.all([json("/api/state"), numbers("/api/order?by=name", Uint32Array)]);
  shown = order;
  labels = new Int32Array(order.length).fill(-1);
  guesses = labels.slice();
  sure = new Float32Array(order.length);
  drawState();
  filter();
  document.addEventListener("visibilitychange", listen);
  listen();
}
start();
