// The page at /. All text from the server is set as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const COLORMAP = [[10, 8, 30], [80, 20, 110], [180, 50, 90], [245, 125, 40], [252, 240, 160]];
const TOP_K = 5;

let model = null; // the response of /v1/model
let file = null; // the current image, a Blob
let explanation = null; // the response of /v1/explain
let input = null; // the preprocessed image of the explanation
let current = 0; // number of the current image; responses for earlier ones are dropped
let stream = null; // of the camera

class RequestError extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function request(path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key && !/^[\x20-\x7e]+$/.test(key)) { // no key has other characters, and fetch would throw
    sessionStorage.removeItem("key");
    throw new RequestError(401, "The API key is wrong: it may only have ASCII characters.");
  }
  if (key) headers["X-API-Key"] = key;
  if (body) headers["Content-Type"] = body.type.startsWith("image/") ? body.type : "application/octet-stream";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body });
  } catch {
    throw new RequestError(0, "The server does not respond. Is it still running?");
  }
  if (response.ok) return response;
  const json = await response.json().catch(() => null);
  throw new RequestError(response.status, json?.error?.message ?? `The server responded with status ${response.status}.`);
}

function showError(error) {
  $("status").textContent = "";
  $("error").textContent = error.message;
  if (error.status === 401) {
    $("key").hidden = false;
    $("key-value").focus();
  }
}

async function start() {
  try {
    model = await (await request("/v1/model")).json();
  } catch (error) {
    showError(error);
    return;
  }
  $("key").hidden = true;
  $("error").textContent = "";
  $("model").textContent = `${model.name}, ${model.classes.length} classes, ${model.backend} ${model.precision}`;
  document.title = `CvT: ${model.name}`;
  $("samples").hidden = model.samples.length === 0;
  $("samples").querySelector("ul").replaceChildren(...model.samples.map(sample));
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
}

function sample(name, number) {
  const button = make("button", { type: "button", title: name }, make("img", { src: `/samples/${number}`, alt: "" }));
  button.setAttribute("aria-label", `Try ${name}`);
  button.addEventListener("click", async () => {
    try {
      classify(await (await request(`/samples/${number}`)).blob());
    } catch (error) {
      showError(error);
    }
  });
  return make("li", {}, button);
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Classify a new image, then explain it.
async function classify(blob) {
  if (!model) return;
  file = blob;
  const number = ++current;
  $("error").textContent = "";
  $("predictions").hidden = $("explanation").hidden = true;
  $("status").textContent = "Classifying...";
  $("status").classList.remove("visually-hidden");
  try {
    const limit = model.limits.max_request_bytes;
    if (blob.size > limit) {
      throw new RequestError(413, `The file has ${blob.size.toLocaleString()} bytes; the server accepts at most ${limit.toLocaleString()}.`);
    }
    const start = performance.now();
    const response = await (await request(`/v1/classify?top_k=${Math.min(TOP_K, model.classes.length)}`, blob)).json();
    const total = performance.now() - start;
    if (number !== current) return;
    const { classes } = response.predictions[0];
    showClasses(classes);
    $("latency").textContent = `Latency: ${(1000 * response.duration_seconds).toFixed(1)} ms on the server, ${total.toFixed(1)} ms in total`;
    $("predictions").hidden = false;
    if (model.explainable) {
      $("status").textContent = "Explaining...";
      await explain(number, null);
    }
    if (number === current) { // for screen readers
      $("status").textContent = `${classes[0].name}, ${percent(classes[0].probability)}`;
      $("status").classList.add("visually-hidden");
    }
  } catch (error) {
    if (number === current) showError(error);
  }
}

const percent = (p) => `${(100 * p).toFixed(1)}%`;

function showClasses(classes) {
  $("classes").replaceChildren(...classes.map(({ name, probability }) => {
    const fill = make("div");
    fill.style.width = `${100 * probability}%`;
    const bar = make("div", { className: "bar" }, fill);
    bar.setAttribute("aria-hidden", "true");
    return make("li", {}, make("span", { textContent: name }), make("span", { textContent: percent(probability) }), bar);
  }));
}

async function explain(number, target) {
  const query = target === null ? "" : `?target=${encodeURIComponent(target)}`;
  const response = await (await request(`/v1/explain${query}`, file)).json();
  const image = new Image();
  image.src = response.input;
  await image.decode();
  if (number !== current) return;
  [explanation, input] = [response, image];
  if (target === null) fillControls();
  $("explanation").hidden = false;
  draw();
}

// Offer the maps, stages, blocks and heads of this explanation.
function fillControls() {
  const attention = explanation.attention.length > 0;
  for (const label of document.querySelectorAll("fieldset .attention")) label.hidden = !attention;
  if (!attention && /attention|rollout/.test(shown())) $("controls").elements.show.value = "grad_cam";
  const stages = Object.keys(explanation.grad_cam);
  options($("stage"), stages.map((stage) => [stage, stage]), stages.at(-1));
  options($("target"), explanation.classes.map(({ name, probability }) => [name, `${name} (${percent(probability)})`]), explanation.target);
  options($("block"), explanation.attention.map((_, i) => [i, i + 1]), explanation.attention.length - 1);
  options($("head"), [["mean", "mean of all"], ...(explanation.attention[0] ?? []).map((_, i) => [i, i + 1])], "mean");
  $("tokens").replaceChildren(...explanation.tokens.map((src, i) => {
    const image = make("img", { src, alt: `Tokens of stage ${i + 1}` });
    const caption = make("figcaption", { textContent: `Stage ${i + 1}` });
    image.addEventListener("load", () => { caption.textContent += `: ${image.naturalHeight}x${image.naturalWidth}`; });
    return make("figure", {}, image, caption);
  }));
}

function options(select, pairs, initial) {
  const kept = select.value; // a choice stays from image to image, except for the class
  select.replaceChildren(...pairs.map(([value, textContent]) => make("option", { value, textContent })));
  const keep = select.id !== "target" && pairs.some(([value]) => String(value) === kept);
  select.value = keep ? kept : initial;
}

const shown = () => $("controls").elements.show.value;

function values() {
  switch (shown()) {
    case "grad_cam": return explanation.grad_cam[$("stage").value];
    case "rollout": return explanation.rollout;
    case "attention": {
      const heads = explanation.attention[$("block").value];
      if ($("head").value !== "mean") return heads[$("head").value];
      return heads[0].map((row, y) => row.map((_, x) => heads.reduce((sum, head) => sum + head[y][x], 0) / heads.length));
    }
    default: return null;
  }
}

function caption() {
  switch (shown()) {
    case "grad_cam": return `Grad-CAM of ${explanation.target} in stage ${$("stage").value}, over the image`;
    case "rollout": return "Attention rollout, over the image";
    case "attention": return `Attention of the class token in block ${Number($("block").value) + 1}, head ${$("head").selectedOptions[0].textContent}, over the image`;
    default: return "Preprocessed image";
  }
}

function draw() {
  for (const line of document.querySelectorAll("#controls .of")) line.hidden = !line.classList.contains(shown());
  const canvas = $("overlay");
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = input.naturalWidth > 64; // small images keep hard edges
  context.drawImage(input, 0, 0, canvas.width, canvas.height);
  const map = values();
  if (map) {
    const heatmap = overlay(map, canvas.width, canvas.height, $("opacity").value / 100);
    const layer = make("canvas", { width: canvas.width, height: canvas.height });
    layer.getContext("2d").putImageData(heatmap, 0, 0);
    context.drawImage(layer, 0, 0);
  }
  canvas.setAttribute("aria-label", caption());
}

// The map as a heatmap, scaled from its minimum (transparent) to its maximum.
function overlay(map, width, height, opacity) {
  const image = new ImageData(width, height);
  const flat = map.flat();
  const low = Math.min(...flat);
  const range = Math.max(...flat) - low;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const value = range > 0 ? (bilinear(map, (y + .5) / height, (x + .5) / width) - low) / range : 0;
      image.data.set(color(value), i);
      image.data[i + 3] = 255 * opacity * value;
    }
  }
  return image;
}

// The map at y and x in [0, 1], interpolated between the centers of its cells.
function bilinear(map, y, x) {
  const at = (position, size) => {
    const index = Math.min(Math.max(position * size - .5, 0), size - 1);
    const first = Math.min(Math.floor(index), Math.max(size - 2, 0));
    return [first, Math.min(first + 1, size - 1), index - first];
  };
  const [y0, y1, v] = at(y, map.length);
  const [x0, x1, u] = at(x, map[0].length);
  return (map[y0][x0] * (1 - u) + map[y0][x1] * u) * (1 - v) + (map[y1][x0] * (1 - u) + map[y1][x1] * u) * v;
}

function color(value) {
  const index = value * (COLORMAP.length - 1);
  const first = Math.min(Math.floor(index), COLORMAP.length - 2);
  return COLORMAP[first].map((c, i) => c + (COLORMAP[first + 1][i] - c) * (index - first));
}

async function openCamera() {
  if (!$("live").hidden) return; // it is open; a second stream would never be stopped
  $("live").hidden = false;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    if ($("live").hidden) { // it was closed while the browser asked for permission
      closeCamera();
      return;
    }
    $("video").srcObject = stream;
    await $("video").play();
    $("capture").focus();
  } catch (error) {
    closeCamera();
    showError(new Error(`The camera cannot be used: ${error.message}`));
  }
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("live").hidden = true;
  $("camera").focus();
}

function capture() {
  const { videoWidth: width, videoHeight: height } = $("video");
  if (!width) return; // before the first frame
  const canvas = make("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  closeCamera();
  canvas.toBlob(classify, "image/png");
}

function classifyFirst(files) {
  const first = [...files].find((f) => f.type.startsWith("image/")) ?? files[0];
  if (first) classify(first);
  else showError(new Error("This is not a file. Drop or paste an image, not its address."));
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) classifyFirst(target.files);
  target.value = ""; // the same file may be chosen again
});
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  classifyFirst(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.target.id !== "key-value") classifyFirst(event.clipboardData.files);
});
$("camera").addEventListener("click", openCamera);
$("capture").addEventListener("click", capture);
$("stop").addEventListener("click", closeCamera);
$("opacity").addEventListener("input", draw);
$("controls").addEventListener("change", async ({ target }) => {
  if (target.id !== "target") {
    draw();
    return;
  }
  $("error").textContent = "";
  try {
    await explain(current, target.value);
  } catch (error) {
    showError(error);
  }
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key-value").value);
  start();
});

{
  const context = $("scale").getContext("2d");
  for (let x = 0; x < 160; x++) {
    context.fillStyle = `rgb(${color(x / 159).join(" ")})`;
    context.fillRect(x, 0, 1, 12);
  }
}
start();
