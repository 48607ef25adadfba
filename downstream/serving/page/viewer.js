// Volumes side by side in niivue, one crosshair for all of them.
"use strict";

const COLORS = [[230, 159, 0], [86, 180, 233], [240, 228, 66], [204, 121, 167], [0, 158, 115], [213, 94, 0]]; // Okabe and Ito

class Viewers {
  constructor(place, onPlace, onPrompt) {
    Object.assign(this, { place, onPlace, onPrompt, panels: [], start: null, toVoxel: null });
  }

  clear() {
    for (const { nv } of this.panels) nv.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.panels = [];
    this.toVoxel = null;
    this.place.replaceChildren();
  }

  // volumes: [{title, buffer, isDifference}] of one grid; view: axial, coronal, sagittal, or "plane"
  // where the file states no position: then slices are shown as they are stored.
  async show(volumes, view) {
    this.clear();
    this.place.classList.toggle("single", volumes.length === 1);
    for (const { title, buffer, isDifference } of volumes) {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      const caption = document.createElement("figcaption");
      caption.textContent = title;
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "application");
      canvas.setAttribute("aria-label", `${title}: arrow keys move the crosshair, Page Up and Page Down change the slice`);
      const frame = document.createElement("div");
      frame.append(canvas);
      figure.append(caption, frame);
      this.place.append(figure);
      const nv = new niivue.Niivue({
        backColor: [0, 0, 0, 1], crosshairColor: [0.9, 0.62, 0, 0.9], crosshairWidth: 0.7, show3Dcrosshair: false,
        isRadiologicalConvention: true, isOrientationTextVisible: view !== "plane", loadingText: "",
        isColorbar: Boolean(isDifference), dragAndDropEnabled: false,
      });
      await nv.attachToCanvas(canvas);
      await nv.loadFromArrayBuffer(buffer, "volume.nii.gz");
      if (view === "plane") this.flatten(nv);
      nv.setSliceType({ coronal: nv.sliceTypeCoronal, sagittal: nv.sliceTypeSagittal }[view] ?? nv.sliceTypeAxial);
      nv.onLocationChange = place => this.onPlace(place);
      canvas.addEventListener("pointerdown", () => setTimeout(() => { this.start = this.crosshair(nv); }));
      canvas.addEventListener("pointerup", event => {
        if (event.button === 0) setTimeout(() => this.onPrompt(this.start, this.crosshair(nv)));
      });
      canvas.addEventListener("keydown", event => this.onKey(nv, event));
      this.panels.push({ nv, isDifference });
    }
    this.sameWindow();
    for (const { nv } of this.panels) {
      nv.broadcastTo(this.panels.map(p => p.nv).filter(other => other !== nv), { "2d": true, "3d": false });
    }
  }

  // Rows downward and columns to the right, as stored; positions would mean nothing.
  flatten(nv) {
    // Index (column, row, slice) to what niivue takes for mm.
    const [, columns, rows, slices] = nv.volumes[0].hdr.dims, [, w, h, d] = nv.volumes[0].hdr.pixDims;
    nv.volumes[0].setAffine([[-w, 0, 0, w * columns / 2], [0, -h, 0, h * rows / 2], [0, 0, d, -d * slices / 2], [0, 0, 0, 1]]);
    this.toVoxel = ([x, y, z]) => [columns / 2 - x / w, rows / 2 - y / h, z / d + slices / 2]
      .map((value, axis) => Math.max(0, Math.min(Math.round(value), [columns, rows, slices][axis] - 1)));
    nv.updateGLVolume();
  }

  // One gray window for all, so that they can be compared; differences five times as bright.
  sameWindow() {
    const first = this.panels[0].nv.volumes[0];
    const top = first.robust_max ?? first.cal_max;
    for (const { nv, isDifference } of this.panels) {
      const volume = nv.volumes[0];
      if (isDifference) volume.colormap = "viridis";
      volume.cal_min = this.panels.length > 1 ? 0 : volume.cal_min;
      volume.cal_max = isDifference ? top / 5 : this.panels.length > 1 ? top : volume.cal_max;
      nv.updateGLVolume();
    }
  }

  async overlay(buffer, count) {
    const { nv } = this.panels.find(p => !p.isDifference && p.nv.volumes.length) ?? this.panels[0];
    while (nv.volumes.length > 1) nv.removeVolume(nv.volumes[1]);
    if (buffer) {
      const mask = await niivue.NVImage.loadFromFile({
        file: new File([buffer], "mask.nii.gz"), name: "mask.nii.gz", opacity: 0.45,
      });
      const colors = Array.from({ length: count }, (_, i) => COLORS[i % COLORS.length]);
      mask.setColormapLabel({
        R: [0, ...colors.map(c => c[0])], G: [0, ...colors.map(c => c[1])], B: [0, ...colors.map(c => c[2])],
        A: [0, ...colors.map(() => 255)], I: [0, ...colors.map((_, i) => i + 1)],
        labels: ["", ...colors.map((_, i) => String(i + 1))],
      });
      nv.addVolume(mask);
    }
    nv.updateGLVolume();
  }

  crosshair(nv = this.panels[0].nv) {
    return Array.from(nv.frac2mm(nv.scene.crosshairPos)).slice(0, 3);
  }

  onKey(nv, event) {
    const across = { axial: 2, coronal: 1, sagittal: 0 }[["axial", "coronal", "sagittal"][nv.opts.sliceType]] ?? 2;
    const [x, y] = [[1, 2], [0, 2], [0, 1]][across];
    const step = { ArrowLeft: [x, 1], ArrowRight: [x, -1], ArrowUp: [y, 1], ArrowDown: [y, -1],
                   PageUp: [across, 1], PageDown: [across, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const move = [0, 0, 0];
    move[step[0]] = step[1];
    nv.moveCrosshairInVox(...move);
  }
}
