// Sets the chosen colours before the first paint.
{
	const theme = localStorage.getItem('enlarger.theme');
	if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
}
