"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [rows, columns] = data.grid;
  const count = rows * columns;
  const DROPPED = 0xffff, CLASS = 0xfffe;
  // How much of the photograph is left under a merged patch, a dropped one, and a heat map.
  const MERGED_SHARE = 0.4, DROPPED_SHARE = 0.12, HEAT_SHARE = 0.3;
  const HEAT = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122],
    [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]];
  const at = (id) => document.getElementById(id);
  const photographs = [...document.querySelectorAll("#images img")];
  const methods = [...new Set(data.networks.map((network) => network.method))];
  const of = (method) => data.networks.map((_, i) => i)
    .filter((i) => data.networks[i].method === method);
  const state = { image: 0, network: Math.min(1, data.networks.length - 1), block: 0,
    view: "tokens", pointed: -1 };
  const lastOf = new Map(); // the network that was last shown of a method
  const cache = new Map();

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  function once(key, make) {
    if (!cache.has(key)) cache.set(key, make());
    return cache.get(key);
  }

  function seen(image, network) {
    return once(`seen ${image} ${network}`, () => {
      const found = data.networks[network].images[image];
      const groups = new Uint16Array(bytes(found.groups).buffer);
      const blocks = groups.length / count;
      const slice = (block) => groups.subarray(block * count, (block + 1) * count);
      return {
        answers: found.answers,
        blocks: Array.from({ length: blocks }, (_, block) => grouped(slice(block))),
        attention: found.attention.map((one) => one && bytes(one)),
        peaks: found.peaks,
      };
    });
  }

  // The patches of each group, and how many patches there are of each kind.
  function grouped(first) {
    const members = new Map();
    first.forEach((group, patch) => {
      if (!members.has(group)) members.set(group, []);
      members.get(group).push(patch);
    });
    const dropped = (members.get(DROPPED) || []).length;
    const groups = [...members].filter(([group, patches]) =>
      group !== DROPPED && (group === CLASS || patches.length > 1)).map(([, patches]) => patches);
    const merged = groups.reduce((sum, patches) => sum + patches.length, 0);
    const tokens = members.size - members.has(DROPPED) - members.has(CLASS);
    return { first, groups, dropped, merged, kept: count - merged - dropped, tokens };
  }

  const edge = (place, places, side) => Math.round(place * side / places);

  function box(patch, side) {
    const row = Math.floor(patch / columns), column = patch % columns;
    const left = edge(column, columns, side), top = edge(row, rows, side);
    return [left, top, edge(column + 1, columns, side) - left, edge(row + 1, rows, side) - top];
  }

  // The mean colour of each patch of an image.
  function colours(image) {
    return once(`colours ${image}`, () => {
      const canvas = document.createElement("canvas");
      const side = canvas.width = canvas.height = photographs[image].naturalWidth;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(photographs[image], 0, 0);
      return Array.from({ length: count }, (_, patch) => {
        const [x, y, width, height] = box(patch, side);
        const pixels = context.getImageData(x, y, Math.max(1, width), Math.max(1, height)).data;
        const sum = [0, 0, 0];
        pixels.forEach((value, i) => { if (i % 4 < 3) sum[i % 4] += value; });
        return sum.map((value) => value * 4 / pixels.length);
      });
    });
  }

  function mean(image, patches) {
    const sum = [0, 0, 0];
    for (const patch of patches) colours(image)[patch].forEach((value, i) => { sum[i] += value; });
    return sum.map((value) => value / patches.length);
  }

  const css = (colour, alpha = 1) => `rgb(${colour.map(Math.round).join(" ")} / ${alpha})`;

  // The sides of a group's patches at which there is another group, as strips inside of them.
  function outline(context, first, patches, side, width) {
    for (const patch of patches) {
      const [x, y, w, h] = box(patch, side);
      const column = patch % columns;
      const differs = (other, inside) => !inside || first[other] !== first[patch];
      if (differs(patch - columns, patch >= columns)) context.fillRect(x, y, w, width);
      if (differs(patch + columns, patch + columns < count))
        context.fillRect(x, y + h - width, w, width);
      if (differs(patch - 1, column > 0)) context.fillRect(x, y, width, h);
      if (differs(patch + 1, column + 1 < columns)) context.fillRect(x + w - width, y, width, h);
    }
  }

  function fade(context, patches, side, share) {
    context.globalAlpha = 1 - share;
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--faded");
    for (const patch of patches) context.fillRect(...box(patch, side));
    context.globalAlpha = 1;
  }

  const droppedOf = (now) => [...now.first.keys()].filter((patch) => now.first[patch] === DROPPED);

  function paintTokens(context, image, now, side) {
    fade(context, droppedOf(now), side, DROPPED_SHARE);
    const width = Math.max(1, side / 260);
    for (const patches of now.groups) {
      const colour = mean(image, patches);
      context.fillStyle = css(colour, 1 - MERGED_SHARE);
      for (const patch of patches) context.fillRect(...box(patch, side));
      const bright = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128;
      context.fillStyle = bright ? "rgb(0 0 0 / 0.5)" : "rgb(255 255 255 / 0.55)";
      outline(context, now.first, patches, side, width);
      context.fillStyle = css(colour);
      outline(context, now.first, patches, side, width * 0.7);
    }
  }

  // `before` is the block before this one: what left there was not attended to any more.
  function paintAttention(context, levels, before, side) {
    context.globalAlpha = 1 - HEAT_SHARE;
    for (let patch = 0; patch < count; patch += 1) {
      const place = levels[patch] / 255 * (HEAT.length - 1);
      const low = Math.min(Math.floor(place), HEAT.length - 2);
      context.fillStyle = css(HEAT[low].map((v, i) => v + (place - low) * (HEAT[low + 1][i] - v)));
      context.fillRect(...box(patch, side));
    }
    context.globalAlpha = 1;
    if (before) fade(context, droppedOf(before), side, 0);
  }

  function paint(canvas, block) {
    const { image, network, view } = state;
    const found = seen(image, network), now = found.blocks[block], side = canvas.width;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(photographs[image], 0, 0, side, side);
    if (view === "tokens") paintTokens(context, image, now, side);
    else if (found.attention[block])
      paintAttention(context, found.attention[block], found.blocks[block - 1], side);
    return context;
  }

  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;
  const label = (network) => [data.networks[network].method, data.networks[network].settings]
    .filter(Boolean).join(", ");

  function summary(now, block) {
    const parts = [`${now.kept} of ${count} patches kept`];
    if (now.merged) parts.push(`${now.merged} merged into ${now.groups.length}`);
    if (now.dropped) parts.push(`${now.dropped} dropped`);
    return `Block ${block}: ${parts.join(", ")}`;
  }

  function draw() {
    const { image, network, block, view, pointed } = state;
    const found = seen(image, network), now = found.blocks[block];
    const context = paint(at("picture"), block);
    if (pointed >= 0) {
      const group = now.first[pointed];
      const same = group === DROPPED ? [pointed]
        : [...now.first.keys()].filter((patch) => now.first[patch] === group);
      context.fillStyle = "#ffffff";
      outline(context, now.first, same, 896, 6);
      context.fillStyle = "#000000";
      outline(context, now.first, same, 896, 3);
    }
    const text = summary(now, block);
    at("status").textContent = text;
    const shown = view === "tokens" ? "tokens" : "class attention";
    at("picture").setAttribute("aria-label",
      `${data.images[image]}, ${shown}, ${label(network)}. ${text}.`);
    at("patch").textContent = pointed < 0 ? "Point at a patch to see what became of it."
      : fate(found, now, block, pointed);
  }

  function fate(found, now, block, patch) {
    const group = now.first[patch];
    const others = now.first.filter((other) => other === group).length - 1;
    let text = "a token of its own";
    if (group === DROPPED) {
      const since = found.blocks.findIndex((one) => one.first[patch] === DROPPED);
      text = `dropped at block ${since}`;
    } else if (group === CLASS) text = "in the class token";
    else if (others) text = `one token with ${others} other${others > 1 ? "s" : ""}`;
    const levels = found.attention[block];
    if (levels && levels[patch])
      text += `, class attention ${percent(levels[patch] / 255 * found.peaks[block])}`;
    return `Row ${Math.floor(patch / columns)}, column ${patch % columns}: ${text}`;
  }

  function drawLayers() {
    const { blocks } = seen(state.image, state.network);
    const slider = at("block");
    slider.max = blocks.length - 1;
    state.block = Math.min(state.block, blocks.length - 1);
    slider.value = state.block;
    if (at("layers").children.length !== blocks.length) {
      at("layers").replaceChildren(...blocks.map((_, block) => {
        const button = document.createElement("button");
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 112;
        button.type = "button";
        button.tabIndex = -1; // the slider goes to the same places
        button.append(canvas, document.createElement("span"));
        button.addEventListener("click", () => choose({ block }));
        return button;
      }));
    }
    blocks.forEach((now, block) => {
      const button = at("layers").children[block];
      paint(button.firstChild, block);
      button.lastChild.textContent = now.tokens;
      button.setAttribute("aria-label", `block ${block}, ${now.tokens} tokens of patches`);
    });
  }

  function drawFigures() {
    const { image, network, block } = state;
    const found = seen(image, network), now = found.blocks[block];
    const dense = data.networks[0].gmacs, cost = data.networks[network].gmacs;
    figure("kept", now.kept, `of ${count}`);
    figure("merged", now.merged, now.merged ? `into ${now.groups.length}` : "patches");
    figure("dropped", now.dropped, "patches");
    const change = Math.round(100 * (cost / dense - 1));
    figure("cost", cost.toPrecision(3),
      change ? `GMACs, ${change < 0 ? "−" : "+"}${Math.abs(change)} %` : "GMACs");
    at("peak").textContent = found.peaks[block] == null ? "" : percent(found.peaks[block]);
    at("number").textContent = `${block} of ${found.blocks.length - 1}`;
    at("block").setAttribute("aria-valuetext", `block ${block}, ${now.tokens} tokens of patches`);
    [...at("layers").children].forEach((button, i) =>
      button.setAttribute("aria-current", String(i === block)));
  }

  function figure(id, value, unit) {
    const small = document.createElement("small");
    small.textContent = unit;
    at(id).replaceChildren(String(value), small);
  }

  function drawAnswers() {
    const mine = seen(state.image, state.network).answers, dense = seen(state.image, 0).answers;
    at("answers").hidden = !mine.length && !dense.length;
    at("reduced").hidden = state.network === 0;
    fill(at("reduced"), label(state.network), mine);
    fill(at("dense"), label(0), dense);
    const same = mine.length && dense.length && mine[0].name === dense[0].name;
    at("agreement").textContent = state.network === 0 ? ""
      : same ? "Both give the same answer." : "They give different answers.";
  }

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function fill(column, title, answers) {
    const items = answers.map(({ name, probability }) => {
      const part = element("div", "");
      part.style.width = `${100 * probability}%`;
      const line = element("div", "answer", element("span", "", name),
        element("span", "", percent(probability)));
      return element("li", "", line, element("div", "bar", part));
    });
    const none = element("p", "note", "Its logits are no finite numbers.");
    column.replaceChildren(element("h3", "", title),
      items.length ? element("ol", "", ...items) : none);
  }

  function options(place, name, labels, chosen, change) {
    place.replaceChildren(...labels.map((text, i) => {
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name, value: i, checked: i === chosen });
      input.addEventListener("change", () => change(i));
      return element("label", "", input, text);
    }));
  }

  function check(place, chosen) {
    place.querySelectorAll("input").forEach((input, i) => { input.checked = i === chosen; });
  }

  function drawChoices(changed) {
    const { image, network, view } = state, { method } = data.networks[network];
    lastOf.set(method, network);
    check(at("images"), image);
    at("name").textContent = data.images[image];
    check(at("methods"), methods.indexOf(method));
    const all = of(method);
    at("rates").hidden = all.length === 1 && !data.networks[network].settings;
    if ("network" in changed) {
      const labels = all.map((i) => data.networks[i].settings || "as it is");
      if (at("settings").dataset.method !== method) {
        at("settings").dataset.method = method;
        options(at("settings"), "setting", labels, 0, (i) => choose({ network: of(method)[i] }));
      }
      check(at("settings"), all.indexOf(network));
    }
    const has = seen(image, network).attention.some(Boolean);
    at("missing").hidden = has;
    at("views").querySelectorAll("input")[1].disabled = !has;
    check(at("views"), view === "tokens" ? 0 : 1);
    at("legend-tokens").hidden = view !== "tokens";
    at("legend-attention").hidden = view === "tokens";
  }

  function choose(changed) {
    Object.assign(state, changed);
    if (!seen(state.image, state.network).attention.some(Boolean)) state.view = "tokens";
    if (["image", "network", "view"].some((name) => name in changed)) drawLayers();
    at("block").value = state.block;
    drawChoices(changed);
    draw();
    drawFigures();
    if ("image" in changed || "network" in changed) drawAnswers();
  }

  const turned = (place, places, step) => (place + step + places) % places;
  const networkOf = (method) => lastOf.has(method) ? lastOf.get(method) : of(method)[0];
  const keys = {
    i: (step) => choose({ image: turned(state.image, data.images.length, step) }),
    m: (step) => {
      const place = methods.indexOf(data.networks[state.network].method);
      choose({ network: networkOf(methods[turned(place, methods.length, step)]) });
    },
    r: (step) => {
      const all = of(data.networks[state.network].method);
      choose({ network: all[turned(all.indexOf(state.network), all.length, step)] });
    },
    a: () => choose({ view: state.view === "tokens" ? "attention" : "tokens" }),
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = keys[event.key.toLowerCase()];
    if (key) key(event.shiftKey ? -1 : 1);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    // A slider and a group of buttons have arrows of their own.
    if (!step || event.target.tagName === "INPUT") return;
    const last = seen(state.image, state.network).blocks.length - 1;
    choose({ block: Math.min(last, Math.max(0, state.block + step)) });
    event.preventDefault();
  }

  function point(event) {
    const frame = at("picture").getBoundingClientRect();
    const place = (offset, size, places) =>
      Math.min(places - 1, Math.max(0, Math.floor(offset / size * places)));
    const pointed = event.type === "pointerleave" ? -1
      : place(event.clientY - frame.top, frame.height, rows) * columns
        + place(event.clientX - frame.left, frame.width, columns);
    if (pointed === state.pointed) return;
    state.pointed = pointed;
    draw();
  }

  function start() {
    options(at("methods"), "method", methods, 0, (i) => choose({ network: networkOf(methods[i]) }));
    options(at("views"), "view", ["Tokens", "Class attention"], 0,
      (i) => choose({ view: i ? "attention" : "tokens" }));
    at("images").addEventListener("change", (event) =>
      choose({ image: Number(event.target.value) }));
    at("block").addEventListener("input", () => choose({ block: at("block").valueAsNumber }));
    at("picture").addEventListener("pointermove", point);
    at("picture").addEventListener("pointerleave", point);
    document.addEventListener("keydown", pressed);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
      () => choose({ view: state.view }));
    const last = seen(0, state.network).blocks.length - 1;
    choose({ image: 0, network: state.network, block: last, view: "tokens" });
    document.documentElement.dataset.ready = "";
  }

  Promise.all(photographs.map((photograph) => photograph.decode())).then(start);
})();
